"""The page of a cache: what it is, how it is made again, how long and how open its pairs are, and some."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...cache.manifest import Manifest, identity_hash
from ...cache.reader import CacheReader, open_cache
from ...cache.summary import Spread
from ..quiet import quiet_libraries
from .cache_figures import CacheFigures, Dispersion, cache_figures
from .page import Section, chart_library, figure, rendered, template, write_page
from .png import write_pictures
from .tables import Column, number, table
from .theme import SCHEMA, Spec

_HEIGHT, _BAR = 190, 18
_FIRST_ROWS = 10


@dataclass(frozen=True)
class CachePage:
    """What was written."""

    page: Path | None
    pictures: list[Path]


def cache_page(
    cache: str | os.PathLike[str] = "tdpo-cache",
    out: str | os.PathLike[str] | None = "cache.html",
    *,
    png: str | os.PathLike[str] | None = None,
    text: bool = True,
) -> CachePage:
    """Write a page about a cache, finished or not; what ``tdpo cache info --html`` does.

    Figures come from a part of a large cache, at most 32 shards of it, and the page says so.

    Args:
        cache: its folder or URL.
        out: the file of the page; None for none.
        png: folder for its charts as pictures, for papers.
        text: whether to show a few pairs, as text where the reference's tokenizer can be opened.

    Raises:
        TdpoError: no cache there, a damaged shard, a file that cannot be written, or no vl-convert.
    """
    chart_library()
    reader = open_cache(cache, allow_incomplete=True)
    with quiet_libraries():
        found = cache_figures(reader, text=text)
    sections = list(_sections(reader, found))
    title = f"Cache {reader.location.rstrip('/').rpartition('/')[2]}"
    page = None
    if out is not None:
        page = write_page(out, title, sections, lead=_lead(reader.manifest), option="--html")
    return CachePage(page, [] if png is None else write_pictures(Path(png), sections))


def _lead(manifest: Manifest) -> str:
    done = (
        "" if manifest.complete else f", {len(manifest.shards)} of {manifest.expected_count} shards finished"
    )
    return (
        f"{manifest.rows:,} preference pairs under {manifest.provenance.get('reference')}{done}; identity "
        f"{identity_hash(manifest.identity)[:12]}"
    )


def _sections(reader: CacheReader, found: CacheFigures | None) -> Iterator[Section]:
    yield _what(reader)
    if found is None:
        return
    yield _lengths(found, len(reader))
    if found.summary.entropy is not None or found.summary.entries is not None:
        yield _reference(found)
    if found.dispersion is not None:
        yield _openness(found.dispersion, reader.vocab_size)
    yield _bytes(found)
    if found.pairs:
        html = rendered("cache_pairs.html.j2", pairs=found.pairs, notes=found.notes)
        yield Section("pairs", "Some of its pairs", html, style=template("cache.css"))


def _what(reader: CacheReader) -> Section:
    manifest = reader.manifest
    skipped = [
        (reason, number(one.count), _rows(one.first_rows, one.count))
        for reason, one in manifest.skipped.items()
    ]
    added = [
        (name, one.kind, ", ".join(one.columns), number(one.rows), _command(one.provenance, "", reader))
        for name, one in sorted(manifest.scores.items())
    ]
    columns = [Column("reason"), Column("rows", numeric=True), Column("first of them", sortable=False)]
    scores = [
        Column("name"), Column("kind"), Column("statistics", css="code"), Column("pairs", numeric=True),
        Column("command", css="code", sortable=False),
    ]  # fmt: skip
    html = rendered(
        "cache.html.j2",
        facts=list(_facts(reader)),
        skipped=table(columns, skipped, caption="Rows of the data that were left out") if skipped else None,
        added=table(scores, added, caption="Statistics added to it") if added else None,
    )
    return Section("what", "What it is", html, style=template("cache.css"))


def _facts(reader: CacheReader) -> Iterator[tuple[str, str, bool]]:
    """What, its text, and whether that is code."""
    manifest, provenance, identity = reader.manifest, reader.manifest.provenance, reader.identity
    yield "command", _command(provenance, "--out ", reader), True
    yield "identity", identity_hash(identity), True
    state = (
        "" if manifest.complete else f" ({len(manifest.shards)} of {manifest.expected_count} shards finished)"
    )
    part = "" if manifest.part is None else f", part {manifest.part}"
    yield "pairs", f"{manifest.rows:,} of {manifest.source_rows:,} rows{part}{state}", False
    yield (
        "tokens",
        f"{manifest.prompt_tokens:,} of prompts, {manifest.completion_tokens:,} of completions (both sides)",
        False,
    )
    yield "size", f"{manifest.bytes / 1e6:,.1f} MB in {len(manifest.shards):,} shards", False
    yield "reference", f"{provenance.get('reference')} ({_plain(identity.get('reference', {}))})", False
    yield "tokenizer", _plain(identity.get("tokenizer", {})), False
    yield "data", f"{provenance.get('dataset')} ({provenance.get('form')}; {_data(identity)})", False
    yield "limits", _plain(identity.get("limits", {})), False
    yield "statistics", _plain(identity["statistics"]), False
    yield "created", _created(provenance), False
    yield "made with", _plain(provenance.get("versions") or {}), False


def _command(provenance: dict[str, Any], option: str, reader: CacheReader) -> str:
    command = provenance.get("command")
    return f"{command} {option}{shlex.quote(reader.location)}" if command else "not recorded"


def _data(identity: dict[str, Any]) -> str:
    data = identity.get("data", {})
    files = [f"{one['name']} sha256 {one['sha256']}" for one in data.get("files", [])[:_FIRST_ROWS]]
    return ", ".join([*files, _plain({name: data.get(name) for name in ("revision", "split", "content")})])


def _created(provenance: dict[str, Any]) -> str:
    resumed = provenance.get("resumed") or []
    again = f", resumed {len(resumed)} times, last {resumed[-1].get('created')}" if resumed else ""
    return f"{provenance.get('created')}{again}"


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if value is not None and not isinstance(value, dict | list)
    )


def _rows(first: Sequence[int], count: int) -> str:
    more = ", …" if count > len(first[:_FIRST_ROWS]) else ""
    return ", ".join(map(str, first[:_FIRST_ROWS])) + more


def _lengths(found: CacheFigures, rows: int) -> Section:
    read, there = found.summary.shards
    part = "" if read == there else f", from {read:,} of {there:,} shards"
    spreads = {f"length-{name}": spread for name, spread in found.summary.tokens.items()}
    titles = {name: f"Tokens of {name.removeprefix('length-')}" for name in spreads}
    lead = f"Of {found.summary.pairs:,} of its {rows:,} pairs{part}."
    return _histograms("lengths", "Lengths", lead, spreads, titles, "pairs", "{:,.0f}")


def _reference(found: CacheFigures) -> Section:
    known = {
        "entropy": ("Entropy of the reference at a token (nats)", found.summary.entropy),
        "completion-entropy": (
            "Mean entropy over a completion (nats)",
            found.summary.completion_entropy,
        ),
        "tail-mass": ("Probability outside the cached head of a token", found.summary.tail_mass),
        "entries": ("Cached entries of a token", found.summary.entries),
    }
    spreads = {name: spread for name, (_, spread) in known.items() if spread is not None}
    titles = {name: title for name, (title, _) in known.items()}
    lead = "Of the tokens of both completions, in row groups spread over the cache."
    return _histograms("reference", "What the reference says", lead, spreads, titles, "tokens", "{:.3g}")


def _histograms(
    id: str, title: str, lead: str, spreads: dict[str, Spread], titles: dict[str, str], unit: str, shape: str
) -> Section:
    figures = [figure(name, _words(spread, shape), height=_HEIGHT + 66) for name, spread in spreads.items()]
    units = {name: "completions" if name == "completion-entropy" else unit for name in spreads}
    charts = {name: histogram(spread, titles[name], units[name]) for name, spread in spreads.items()}
    html = Markup('<p>{}</p>\n<div class="figures">\n{}\n</div>').format(lead, Markup("\n").join(figures))
    return Section(id, title, html, charts)


def _words(spread: Spread, shape: str) -> str:
    named = [f"{word} {shape.format(getattr(spread, word))}" for word in ("median", "p95", "maximum")]
    return f"Mean {spread.mean:.4g}, {', '.join(named)}."


def _openness(found: Dispersion, vocab_size: int) -> Section:
    low, middle, high = found.quartiles
    read = f"mean {found.spread.mean:.4g} (line), quartiles {low:.4g}, {middle:.4g}, {high:.4g} (dashed)"
    lead = Markup(
        "<p>MallowsPO lets a pair count in proportion to <code>-log(H / log V)</code>: the less its prompt "
        "leaves open, the more. H is the mean over the two completions of the reference's mean entropy over "
        "the tokens, V = {} the size of the vocabulary. <code>scale=auto</code> divides by the mean over the "
        "cache.</p>\n{}"
    )
    name = "dispersion"
    chart = histogram(found.spread, "Dispersion over prompts", "pairs", axis="-log(H / log V)")
    chart["title"] = {"text": chart["title"], "subtitle": read}
    chart["layer"] += [
        _rules([found.spread.mean], "at", []),
        _rules([low, middle, high], "at", [4, 3]),
    ]
    html = lead.format(f"{vocab_size:,}", figure(name, f"Of {found.pairs:,} pairs.", height=_HEIGHT + 66))
    return Section("dispersion", "Dispersion over prompts", html, {name: chart})


def _rules(values: Sequence[float], field: str, dash: list[int]) -> Spec:
    return {
        "data": {"values": [{field: value} for value in values]},
        "mark": {"type": "rule", "stroke": "var(--series-2)", "strokeWidth": 1.5, "strokeDash": dash},
        "encoding": {"x": {"field": field, "type": "quantitative"}},
    }


def histogram(spread: Spread, title: str, unit: str, *, axis: str | None = None) -> Spec:
    """Bars of a spread: the share of values in each bin.

    Args:
        spread: of them.
        title: of the chart.
        unit: what the values are of, such as ``pairs``.
        axis: title of the horizontal axis; the chart's own when None.
    """
    total = sum(spread.counts)
    rows = [
        {"from": low, "to": high, "count": count, "share": count / total}
        for low, high, count in zip(spread.edges[:-1], spread.edges[1:], spread.counts, strict=True)
    ]
    ends = {"type": "quantitative", "scale": {"domain": [spread.edges[0], spread.edges[-1]], "nice": False}}
    bars = {
        "data": {"values": rows},
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": {
            "x": {"field": "from", "bin": "binned", "title": axis or title, **ends},
            "x2": {"field": "to"},
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": f"share of {unit}",
                "axis": {"format": "~%"},
            },
            "tooltip": [
                {"field": "from", "type": "quantitative", "format": ",.4~g", "title": "from"},
                {"field": "to", "type": "quantitative", "format": ",.4~g", "title": "below"},
                {"field": "count", "type": "quantitative", "format": ",", "title": unit},
                {"field": "share", "type": "quantitative", "format": ".2~%", "title": "share"},
            ],
        },
    }
    return {"$schema": SCHEMA, "title": title, "width": "container", "height": _HEIGHT, "layer": [bars]}


def _bytes(found: CacheFigures) -> Section:
    sizes = sorted(found.summary.column_bytes.items(), key=lambda item: -item[1])
    rows = [{"column": name, "bytes": size} for name, size in sizes]
    chart = {
        "$schema": SCHEMA,
        "title": "Bytes by column",
        "width": "container",
        "height": _BAR * len(rows),
        "data": {"values": rows},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "column",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelLimit": 220},
            },
            "x": {"field": "bytes", "type": "quantitative", "title": "bytes per completion token"},
            "tooltip": [
                {"field": "column", "type": "nominal"},
                {"field": "bytes", "type": "quantitative", "format": ",.3~f"},
            ],
        },
    }
    total = sum(size for _, size in sizes)
    caption = f"{total:.1f} bytes a completion token in all, compressed."
    html = figure("bytes", caption, height=_BAR * len(rows) + 66)
    return Section("bytes", "Size", html, {"bytes": chart})
