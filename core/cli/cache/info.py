"""``tdpo cache info``: what a cache holds."""

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ....cache.manifest import Manifest


@click.command()
@click.argument("folder", metavar="DIR", default="tdpo-cache")
@click.option("--json", "as_json", is_flag=True, help="the manifest's content, for a program")
def info(folder: str, as_json: bool) -> None:
    """Show what a cache holds and where it came from."""
    from ....cache.reader import open_cache

    manifest = open_cache(folder, allow_incomplete=True).manifest
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        describe(folder, manifest)


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
