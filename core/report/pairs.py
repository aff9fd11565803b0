"""Pairs: how margins and log-ratios are distributed, which pairs are hardest, and which are noisiest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from markupsafe import Markup

from .curves import colour_scale
from .gather import ReportedRun
from .heatmap_data import Shown
from .legend import LEGEND_SCRIPT, LEGEND_STYLE, legend
from .page import Section, figure, rendered
from .pair_figures import MARGIN, RATIOS, Looked, PairFigures
from .tables import Cell, Column, number, table
from .theme import Spec, chart_of_runs

ROWS = 10
"""Pairs of each table."""
_BINS = 40
_TAIL = 0.5
_HEIGHT = 200
_SNIPPET = 90

_TITLES = {
    MARGIN: "Reward margin (nats)",
    RATIOS[0]: "Log-ratio of chosen (nats)",
    RATIOS[1]: "Log-ratio of rejected (nats)",
}


@dataclass(frozen=True)
class Ranked:
    """Pairs by how hard, or how noisy, they are."""

    title: str
    meaning: str
    """By what they are ranked."""
    measure: str
    """The column's title."""
    pairs: list[tuple[str, float]]
    """Pair id and measure, the first first."""


def rank(figures: Sequence[PairFigures], count: int = ROWS) -> list[Ranked]:
    """The hardest and the noisiest of the pairs that all runs have; none without pairs in common."""
    ids = common_pairs(figures)
    if not ids:
        return []
    margins = np.array([[one.by_id(MARGIN)[pair] for pair in ids] for one in figures])
    return [_hardest(ids, margins, count), _noisiest(figures, ids, margins, count)]


def common_pairs(figures: Sequence[PairFigures]) -> list[str]:
    """Ids of the pairs that every run has figures of, in the first one's order."""
    if not figures:
        return []
    others = [set(one.ids) for one in figures[1:]]
    return [pair for pair in dict.fromkeys(figures[0].ids) if all(pair in ids for ids in others)]


def _hardest(ids: Sequence[str], margins: np.ndarray, count: int) -> Ranked:
    scale = margins.std(axis=1, keepdims=True)
    # Objectives and betas give margins of different sizes: each run counts in units of its own spread.
    measure = (margins / np.where(scale > 0, scale, 1)).mean(axis=0) if len(margins) > 1 else margins[0]
    meaning = (
        "Lowest reward margin: the policies prefer the rejected completion most surely. Mean over the runs "
        "of the margin in units of the run's standard deviation."
        if len(margins) > 1
        else "Lowest reward margin: the policy prefers the rejected completion most surely."
    )
    title = "margin / sd" if len(margins) > 1 else "margin"
    return Ranked("Hardest pairs", meaning, title, _first(ids, measure, -measure, count))


def _noisiest(figures: Sequence[PairFigures], ids: Sequence[str], margins: np.ndarray, count: int) -> Ranked:
    if len(margins) > 1:
        measure = percentiles(margins).std(axis=0)
        return Ranked(
            "Noisiest pairs",
            "The runs disagree most: standard deviation over the runs of the pair's percentile among the "
            "margins of each.",
            "sd of percentile",
            _first(ids, measure, measure, count),
        )
    a, b = (np.array([figures[0].by_id(name)[pair] for pair in ids]) for name in RATIOS)
    measure = np.where(np.sign(a) == np.sign(b), np.minimum(abs(a), abs(b)), 0.0)
    return Ranked(
        "Noisiest pairs",
        "Moved most without being told apart: the part of the log-ratio that chosen and rejected have in "
        "common, which cancels in the margin. (With several runs: the pairs on which they disagree.)",
        "shared log-ratio (nats)",
        _first(ids, measure, measure, count),
    )


def percentiles(values: np.ndarray) -> np.ndarray:
    """Rank of each value in its row of [R, N], from 0 to 100; equal values share the mean of their ranks."""
    return np.stack([_percentiles(row) for row in values])


def _percentiles(row: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(row, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2
    found: np.ndarray = 100 * ranks[which] / max(1, len(row) - 1)
    return found


def _first(ids: Sequence[str], measure: np.ndarray, by: np.ndarray, count: int) -> list[tuple[str, float]]:
    order = np.argsort(-by, kind="stable")[:count]
    return [(ids[place], float(measure[place])) for place in order if np.isfinite(measure[place])]


def to_show(
    ranked: Sequence[Ranked],
    rows: Mapping[str, int],
    asked: Sequence[str] = (),
    *,
    count: int = ROWS,
    seed: int = 0,
) -> list[Shown]:
    """The pairs to show token by token: those asked for, the first of each table in turn, and some at random.

    Args:
        ranked: the tables.
        rows: pair id -> row of the cache.
        asked: ids of further pairs, which come first.
        count: pairs beside those asked for; a quarter of them are drawn from all of the cache.
        seed: of that draw.
    """
    tables = [[(pair, one.title.split()[0].lower()) for pair, _ in one.pairs] for one in ranked]
    turns = [entry for turn in zip_longest(*tables) for entry in turn if entry is not None]
    ids = list(rows)
    order = np.random.default_rng(seed).permutation(len(ids))[: len(asked) + 2 * count]
    why = dict.fromkeys((pair for pair in asked if pair in rows), "asked for")
    for candidates, most in ((turns, count - count // 4), ([(ids[at], "random") for at in order], count)):
        for pair, reason in candidates:
            if len(why) < len(asked) + most and pair in rows:
                why.setdefault(pair, reason)
    return [Shown(rows[pair], pair, reason) for pair, reason in why.items()]


def pairs_section(
    runs: Sequence[ReportedRun],
    looked: Looked,
    ranked: Sequence[Ranked],
    shown: Mapping[str, str],
    *,
    target: str = "tokens",
) -> Section:
    """The distributions and the tables.

    Args:
        runs: of the report.
        looked: the figures.
        ranked: of :func:`rank`.
        shown: pair id -> prompt, of the pairs that the section ``target`` shows token by token.
        target: of the links.
    """
    names = [name for name in _TITLES if looked.figures]
    charts = {f"pairs-{name}": histogram(looked.figures, name) for name in names}
    on_paper = {f"pairs-{name}": histogram(looked.figures, name, own_legend=True) for name in names}
    places = [figure(f"pairs-{name}", _caption(looked.figures, name), height=_HEIGHT + 66) for name in names]
    html = rendered(
        "pairs.html.j2",
        looked=looked,
        legend=legend([run for run in runs if run.label in {one.label for one in looked.figures}]),
        figures=Markup("\n").join(places),
        tables=[_table(looked.figures, one, shown, target) for one in ranked],
        few=bool(looked.figures) and not ranked,
    )
    return Section(
        "pairs", "Pairs", html, charts, on_paper=on_paper, script=LEGEND_SCRIPT, style=LEGEND_STYLE
    )


def bin_edges(values: Sequence[np.ndarray], bins: int = _BINS) -> np.ndarray:
    """Edges [bins + 1] of equally wide bins over the values, but for the outermost 0.5 % at either end."""
    every = np.concatenate(values)
    low, high = np.percentile(every[np.isfinite(every)], [_TAIL, 100 - _TAIL])
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def histogram(figures: Sequence[PairFigures], name: str, *, own_legend: bool = False) -> Spec:
    """Shares of pairs over a figure, an outline a run; the end bins hold what is further out."""
    edges = bin_edges([one.columns[name] for one in figures])
    rows: list[dict[str, Any]] = []
    for one in figures:
        values = one.columns[name][np.isfinite(one.columns[name])]
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        rows += [
            {"run": one.label, "from": low, "to": high, "pairs": int(count), "share": count / len(values)}
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        # The outline comes down at its end.
        rows.append({"run": one.label, "from": edges[-1], "share": 0.0})
    runs = [(one.number, one.label) for one in figures]
    colours = {
        "field": "run",
        "type": "nominal",
        "title": None,
        "scale": colour_scale(runs),
        "legend": {"symbolType": "stroke", "columns": 3} if own_legend else None,
    }
    x = {"field": "from", "type": "quantitative", "title": _TITLES[name], "scale": {"nice": False}}
    y = {"field": "share", "type": "quantitative", "title": "share of pairs", "axis": {"format": "~%"}}
    number_of = {"type": "quantitative", "format": ".4~g"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeDash": [3, 3]},
            "data": {"values": [{"at": 0}]},
            "encoding": {"x": {**x, "field": "at"}},
        },
        {
            "mark": {"type": "area", "interpolate": "step-after", "opacity": 0.1},
            "encoding": {"x": x, "y": {**y, "stack": None}, "color": colours},
        },
        {
            "mark": {"type": "line", "interpolate": "step-after"},
            "encoding": {"x": x, "y": y, "color": colours},
        },
        {
            "transform": [{"filter": "isValid(datum.to)"}],
            "mark": {"type": "bar", "opacity": 0, "binSpacing": 0},
            "encoding": {
                "x": {**x, "bin": {"binned": True}},
                "x2": {"field": "to"},
                "y": {**y, "stack": None},
                "tooltip": [
                    {"field": "run", "type": "nominal"},
                    {"field": "from", **number_of},
                    {"field": "to", **number_of},
                    {"field": "pairs", "type": "quantitative", "format": ","},
                    {"field": "share", "type": "quantitative", "format": ".1%"},
                ],
            },
        },
    ]
    return chart_of_runs(_TITLES[name].removesuffix(" (nats)"), _HEIGHT, rows, layers)


def _caption(figures: Sequence[PairFigures], name: str) -> str:
    columns = [one.columns[name] for one in figures]
    edges = bin_edges(columns)
    outside = sum(int(((values < edges[0]) | (values > edges[-1])).sum()) for values in columns)
    below = "; ".join(
        f"{one.label}: median {number(float(np.nanmedian(one.columns[name])), 3).shown}"
        + (f", {np.nanmean(one.columns[name] < 0):.1%} below 0" if name == MARGIN else "")
        for one in figures
    )
    return f"{below}." + (f" The end bins hold {outside:,} values that are further out." if outside else "")


def _table(figures: Sequence[PairFigures], one: Ranked, shown: Mapping[str, str], target: str) -> Markup:
    margins = [each.by_id(MARGIN) for each in figures]
    lengths = [figures[0].by_id(name) for name in ("chosen_tokens", "rejected_tokens")]
    columns = [
        Column("pair", css="code"),
        Column(one.measure, numeric=True),
        *(
            Column(f"margin, {each.label}" if len(figures) > 1 else "margin", numeric=True)
            for each in figures
        ),
        Column("tokens chosen", numeric=True),
        Column("rejected", numeric=True),
        *([Column("prompt", css="long")] if any(pair in shown for pair, _ in one.pairs) else []),
    ]
    if len(figures) == 1 and one.measure == "margin":
        del columns[2]
    rows = []
    for pair, measure in one.pairs:
        values = [number(each[pair], 3) for each in margins]
        row: list[Any] = [
            _link(pair, shown, target),
            number(measure, 3),
            *(values if len(figures) > 1 or one.measure != "margin" else []),
            *(number(int(each[pair])) for each in lengths),
        ]
        if columns[-1].title == "prompt":
            row.append(_snippet(shown.get(pair, "")))
        rows.append(row)
    caption = Markup("<strong>{}.</strong> {}").format(one.title, one.meaning)
    return table(columns, rows, caption=caption, id=f"pairs-{one.title.split()[0].lower()}")


def _of(what: str, one: PairFigures, figures: Sequence[PairFigures]) -> str:
    return f"{what}, {one.label}" if len(figures) > 1 else what


def _link(pair: str, shown: Mapping[str, str], target: str) -> Cell:
    if pair not in shown:
        return Cell(pair[:12], pair)
    link = Markup('<a href="#{}-pair-{}">{}</a>').format(target, pair, pair[:12])
    return Cell(link, pair)


def _snippet(prompt: str) -> str:
    """The end of a prompt, which is where pairs of a conversation differ."""
    text = " ".join(prompt.split())
    return text if len(text) <= _SNIPPET else "\N{HORIZONTAL ELLIPSIS}" + text[-_SNIPPET:]
