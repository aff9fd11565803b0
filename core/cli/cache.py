"""``tdpo cache``: build, look at and check caches."""

import sys
from typing import TYPE_CHECKING, Any

import click

from ..config import BuildConfig, build_config
from .options import config_option, config_path, given, options_of

if TYPE_CHECKING:
    from ...cache.manifest import Manifest


@click.group()
def cache() -> None:
    """Build a cache of a reference model's statistics, look at one, and check it."""


@cache.command()
@config_option
@options_of(BuildConfig)
def build(config: str | None, **options: Any) -> None:
    """Run the reference once over preference pairs and write what it said.

    The same command resumes a build that was cut off.
    """
    resolved = build_config(given(options), config_path(config))
    from ..build import run_build

    reader = run_build(resolved)
    describe(str(reader.path), reader.manifest)


@cache.command()
@click.argument("folder", metavar="DIR", default="tdpo-cache")
@click.option("--json", "as_json", is_flag=True, help="the manifest's content, for a program")
def info(folder: str, as_json: bool) -> None:
    """Show what a cache holds and where it came from."""
    from ...cache.reader import open_cache

    manifest = open_cache(folder, allow_incomplete=True).manifest
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        describe(folder, manifest)


@cache.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@click.option(
    "--rescore", default=0, metavar="N", type=click.IntRange(min=0), help="score N random pairs again"
)
@click.option("--ref", metavar="MODEL", help="model to do so with [default: the one that the manifest names]")
@click.option("--json", "as_json", is_flag=True, help="the report, for a program")
def verify(folder: str, rescore: int, ref: str | None, as_json: bool) -> int:
    """Check a cache: files, checksums, schema, ids, lengths and ranges of all values.

    Prints a line for each fault. Exits with 0 where there is none, with 1 where there are some.
    """
    from ..rescore import verify_cache

    report = verify_cache(folder, rescore, ref)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report.ok else 1


def describe(folder: str, manifest: "Manifest") -> None:
    """Print counts, size and what was skipped."""
    statistics = manifest.identity["statistics"]
    state = "" if manifest.complete else f", {len(manifest.shards)} of {manifest.shard_count} shards finished"
    click.echo(f"{folder}: {manifest.rows:,} pairs{state}")
    click.echo(
        f"  tokens     {manifest.prompt_tokens:,} of prompts, {manifest.completion_tokens:,} of completions "
        "(both sides)"
    )
    per_token = manifest.bytes / max(manifest.completion_tokens, 1)
    click.echo(f"  size       {manifest.bytes / 1e6:,.1f} MB, {per_token:.1f} bytes per completion token")
    click.echo(
        f"  sample     head {statistics['head']} + tail {statistics['tail']} "
        f"of {statistics['vocab_size']:,} tokens"
    )
    click.echo(
        f"  reference  {manifest.provenance.get('reference')}, {manifest.identity['reference']['dtype']}"
    )
    click.echo(f"  data       {manifest.provenance.get('dataset')} ({manifest.provenance.get('form')})")
    if not manifest.skipped:
        click.echo("  skipped    none")
    for reason, skipped in manifest.skipped.items():
        rows = ", ".join(str(row) for row in skipped.first_rows[:5])
        more = ", ..." if skipped.count > len(skipped.first_rows[:5]) else ""
        click.echo(f"  skipped    {skipped.count} {reason} (rows {rows}{more})")
    sys.stdout.flush()
