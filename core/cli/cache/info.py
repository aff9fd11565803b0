"""``tdpo cache info``: what a cache holds and where it came from."""

import json
from typing import TYPE_CHECKING, Any

import click

from ...errors import ConfigError

if TYPE_CHECKING:
    from ....cache.manifest import Manifest
    from ....cache.summary import Spread, Summary

_BAR = 40


@click.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@click.option(
    "--statistics", is_flag=True, help="also the reference's entropies and the mass outside the cached head"
)
@click.option("--json", "as_json", is_flag=True, help="the manifest's content and the figures, for a program")
@click.option(
    "--html", metavar="FILE", help="all of it, drawn, with some of the pairs, as a page in one file"
)
@click.option("--png", metavar="DIR", help="the page's charts as pictures, for papers")
@click.option("--no-text", is_flag=True, help="of --html: no pairs")
def info(
    folder: str, statistics: bool, as_json: bool, html: str | None, png: str | None, no_text: bool
) -> None:
    """Show what a cache holds, finished or not, and where it came from.

    Lengths and sizes come from at most 32 shards, spread over the cache.
    """
    if html is not None or png is not None:
        _draw(folder, html, png, text=not no_text)
        return
    if no_text:
        raise ConfigError("--no-text: is for the page; give --html FILE too")
    from ....cache.reader import open_cache
    from ....cache.summary import summarise

    reader = open_cache(folder, allow_incomplete=True)
    manifest, summary = reader.manifest, summarise(reader, statistics=statistics)
    if as_json:
        document = json.loads(manifest.to_json()) | {"summary": summary.to_dict() if summary else None}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    describe(folder, manifest)
    _origin(manifest)
    if summary is not None:
        _figures(summary)


def _draw(folder: str, html: str | None, png: str | None, *, text: bool) -> None:
    from ...report.cache_page import cache_page

    written = cache_page(folder, html, png=png, text=text)
    if written.page is not None:
        click.echo(f"{written.page}: {written.page.stat().st_size / 1e6:,.1f} MB")
    if written.pictures:
        click.echo(f"{png}: {', '.join(path.name for path in written.pictures)}")


def describe(folder: str, manifest: "Manifest") -> None:
    """Print counts, size and what was skipped."""
    statistics = manifest.identity["statistics"]
    done, total = len(manifest.shards), manifest.expected_count
    state = "" if manifest.complete else f", {done} of {total} shards finished"
    part = "" if manifest.part is None else f", part {manifest.part}"
    click.echo(f"{folder}: {manifest.rows:,} pairs{part}{state}")
    _line(
        "tokens",
        f"{manifest.prompt_tokens:,} of prompts, {manifest.completion_tokens:,} of completions (both sides)",
    )
    per_token = manifest.bytes / max(manifest.completion_tokens, 1)
    _line("size", f"{manifest.bytes / 1e6:,.1f} MB, {per_token:.1f} bytes per completion token")
    hidden = f", last hidden states in {statistics['hidden']}" if statistics.get("hidden") else ""
    entries = f"head {statistics['head']} + tail {statistics['tail']} of {statistics['vocab_size']:,} tokens"
    _line("sample", entries + hidden)
    _line(
        "reference", f"{manifest.provenance.get('reference')}, {manifest.identity['reference'].get('dtype')}"
    )
    _line("data", f"{manifest.provenance.get('dataset')} ({manifest.provenance.get('form')})")
    if not manifest.skipped:
        _line("skipped", "none")
    for reason, skipped in manifest.skipped.items():
        rows = ", ".join(str(row) for row in skipped.first_rows[:5])
        more = ", ..." if skipped.count > len(skipped.first_rows[:5]) else ""
        _line("skipped", f"{skipped.count} {reason} (rows {rows}{more})")


def _line(label: str, text: str) -> None:
    click.echo(f"  {label:<10} {text}")


def _origin(manifest: "Manifest") -> None:
    """Print when, with what and of what the cache was made, and what was added to it."""
    provenance, identity = manifest.provenance, manifest.identity
    versions = provenance.get("versions", {})
    made = ", ".join(
        f"{name} {versions[name]}" for name in ("tdpo", "torch", "transformers") if name in versions
    )
    _line("created", f"{provenance.get('created', 'unknown')}{f' with {made}' if made else ''}")
    if resumed := provenance.get("resumed"):
        times = "once" if len(resumed) == 1 else f"{len(resumed)} times"
        _line("resumed", f"{times}, last {resumed[-1].get('created', 'unknown')}")
    for label, found in (
        ("weights", _proof(identity.get("reference", {}))),
        ("tokenizer", _hashes(identity.get("tokenizer", {}))),
        ("limits", _plain(identity.get("limits", {}))),
    ):
        if found:
            _line(label, found)
    for name, scores in sorted(manifest.scores.items()):
        state = "" if scores.complete else ", not finished"
        _line("scores", f"{name}: {scores.kind}, {', '.join(scores.columns)} ({scores.rows:,} pairs{state})")


def _proof(reference: dict[str, Any]) -> str:
    return _plain({name: value for name, value in reference.items() if name != "dtype"})


def _hashes(tokenizer: dict[str, Any]) -> str:
    return _plain({name.removesuffix("_sha256"): value for name, value in tokenizer.items()})


def _plain(values: dict[str, Any]) -> str:
    """The values that are there, by name; hashes by their first 12 digits."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value[:12] if isinstance(value, str) and len(value) >= 40 else value}"
        for name, value in values.items()
        if value is not None and not isinstance(value, dict | list)
    )


def _figures(summary: "Summary") -> None:
    """Print lengths as bars, and bytes by column."""
    read, there = summary.shards
    if read < there:
        click.echo(f"\nfrom {read} of {there} shards, {summary.pairs:,} pairs:")
    for name, spread in summary.tokens.items():
        _bars(f"tokens of {name}", spread, "{:,.0f}")
    if summary.entropy is not None:
        _bars("entropy of the reference, nats", summary.entropy, "{:.3g}")
    if summary.completion_entropy is not None:
        _bars("its mean over a completion, nats", summary.completion_entropy, "{:.3g}")
    if summary.entries is not None:
        _bars("cached entries of a token", summary.entries, "{:,.0f}")
    if summary.tail_mass is not None:
        _bars("probability outside the cached head", summary.tail_mass, "{:.3g}")
    click.echo(f"\nbytes per completion token: {sum(summary.column_bytes.values()):.1f}")
    for name, size in sorted(summary.column_bytes.items(), key=lambda item: -item[1]):
        click.echo(f"  {name:<22}{size:8.2f}")


def _bars(title: str, spread: "Spread", shape: str) -> None:
    named = [f"{word} {shape.format(getattr(spread, word))}" for word in ("median", "p95", "maximum")]
    click.echo(f"\n{title}: mean {spread.mean:.4g}, {', '.join(named)}")
    edges = [shape.format(edge) for edge in spread.edges]
    width = max(map(len, edges))
    for left, count in zip(edges, spread.counts, strict=False):
        bar = "#" * max(round(_BAR * count / max(spread.counts)), count > 0)
        click.echo(f"  {left:>{width}} {bar:<{_BAR}} {count:,}")
