"""The pictures of docs/frontier.md, as Vega-Lite: with intervals, in colours that every eye tells apart."""

from pathlib import Path
from typing import Any

import vl_convert

from . import analyse
from .analyse import BASE, Experiment, Interval
from .plan import BY_NAME
from .tables import CURVE_BETA, VARIANTS

# Okabe and Ito's palette.
_COLOURS = {
    "dpo": "#000000",
    "tdpo1": "#D55E00",
    "tdpo2-0.1": "#56B4E9",
    "tdpo2-0.5": "#0072B2",
    "tdpo2-1": "#009E73",
    "mallows": "#CC79A7",
    "tis": "#E69F00",
    "tdpo2-0.5-exact": "#D55E00",
    "tdpo2-0.5-truncated": "#CC79A7",
}
_SHAPES = {
    "dpo": "circle",
    "tdpo1": "square",
    "tdpo2-0.1": "triangle-down",
    "tdpo2-0.5": "triangle-up",
    "tdpo2-1": "diamond",
    "mallows": "cross",
    "tis": "triangle-right",
    "tdpo2-0.5-exact": "square",
    "tdpo2-0.5-truncated": "cross",
}
_SIDES = {"chosen": "#0072B2", "rejected": "#D55E00"}
_ESTIMATES = {"sparse": "8 likeliest + 8 draws", "truncated": "16 likeliest, one bucket for the rest"}
_CONFIG = {
    "background": "white",
    "font": "DejaVu Sans",
    "view": {"stroke": None},
    "axis": {"gridColor": "#ececec", "domainColor": "#666", "tickColor": "#666", "labelFontSize": 11},
    "axisX": {"titleFontWeight": "normal", "titleFontSize": 12},
    "axisY": {"titleFontWeight": "normal", "titleFontSize": 12},
    "title": {"anchor": "start", "fontSize": 13, "fontWeight": "bold", "offset": 10},
    "legend": {
        "title": None,
        "labelFontSize": 11.5,
        "labelLimit": 0,
        "symbolOpacity": 1,
        "symbolSize": 75,
    },
}
_HEIGHT = 350
Spec = dict[str, Any]


def draw(experiment: Experiment, folder: Path) -> list[Path]:
    """Write frontier.png, frontier-kl.png and frontier-cache.png into ``folder``."""
    objectives = {name: BY_NAME[name].label for name in experiment.objectives}
    caches = {name: label for name, label in VARIANTS.items() if name in experiment.plan.series}
    specs = {
        "frontier": _side_by_side(
            frontier(experiment, objectives, "Reward against KL: a point for each β, means over seeds"),
            forest(experiment, {name: label for name, label in objectives.items() if name != BASE}),
        ),
        "frontier-kl": curves(experiment, objectives),
        "frontier-cache": _side_by_side(
            tracking(experiment), frontier(experiment, caches, "TDPO2, α = 0.5, trained from three caches")
        ),
    }
    places = []
    for name, spec in specs.items():
        place = folder / f"{name}.png"
        place.write_bytes(vl_convert.vegalite_to_png({**spec, "config": _CONFIG}, scale=2))
        places.append(place)
    return places


def _side_by_side(*specs: Spec) -> Spec:
    scales = dict.fromkeys(("color", "shape"), "independent")
    return {"hconcat": list(specs), "spacing": 40, "resolve": {"scale": scales}}


def _scales(labels: dict[str, str]) -> Spec:
    """Colour and shape of each series, with one legend for both."""
    return {
        channel: {
            "field": "label",
            "type": "nominal",
            "scale": {"domain": list(labels.values()), "range": [of[name] for name in labels]},
        }
        for channel, of in (("color", _COLOURS), ("shape", _SHAPES))
    }


def _values(name: str, value: Interval) -> dict[str, float]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def _layer(mark: Spec, data: list[Spec] | None = None, **encoding: Any) -> Spec:
    """One layer; ``data`` where it has rows of its own."""
    own = {} if data is None else {"data": {"values": data}}
    return {**own, "mark": mark, "encoding": encoding}


def _reference_line(channel: str, value: float) -> Spec:
    encoding = {channel: {"datum": value, "type": "quantitative"}}
    return {"mark": {"type": "rule", "color": "#666", "strokeDash": [3, 3]}, "encoding": encoding}


def frontier(experiment: Experiment, labels: dict[str, str], title: str) -> Spec:
    """Reward gained against sequential KL: a point for every beta, a line for every series."""
    points = [
        {
            "label": label,
            **_values("kl", Interval.of(experiment.over_seeds(name, beta, "kl"))),
            **_values("gain", Interval.of(experiment.gains(name, beta))),
        }
        for name, label in labels.items()
        for beta in experiment.plan.betas
    ]
    start = [{"label": label, "kl": 0, "gain": 0} for label in labels.values()]
    # A square root spreads the crowd near the reference and keeps 0 in sight.
    x = {
        "field": "kl",
        "type": "quantitative",
        "title": "sequential KL(reference ‖ policy) of own samples, nats (square-root scale)",
        # An interval may reach below 0, where no KL is.
        "scale": {"type": "sqrt", "domainMin": 0, "nice": False},
        "axis": {"values": [0, 0.1, 0.5, 1, 2, 3, 5, 10, 20, 40, 80], "format": ".3~r"},
    }
    y = {"field": "gain", "type": "quantitative", "title": "reward gained over the reference"}
    scales = _scales(labels)
    colour, across = scales["color"], {"type": "rule", "strokeWidth": 1.2, "clip": True}
    line = {"type": "line", "opacity": 0.6, "strokeWidth": 1.5}
    return {
        "title": title,
        "data": {"values": points},
        "width": 460,
        "height": _HEIGHT,
        "layer": [
            _layer(line, [*start, *points], x=x, y=y, order={"field": "kl"}, color=colour),
            _layer(across, x={**x, "field": "kl_low"}, x2={"field": "kl_high"}, y=y, color=colour),
            _layer(across, x=x, y={**y, "field": "gain_low"}, y2={"field": "gain_high"}, color=colour),
            _layer({"type": "point", "filled": True, "size": 60, "opacity": 1}, x=x, y=y, **scales),
        ],
    }


def forest(experiment: Experiment, labels: dict[str, str]) -> Spec:
    """Area under the frontier less DPO's: a tick for every seed, their mean and its interval."""
    budget = analyse.common_budget(experiment)
    base = analyse.areas(experiment, BASE, budget)
    means, seeds = [], []
    for name, label in labels.items():
        values = analyse.areas(experiment, name, budget)
        means.append({"label": label, **_values("gain", analyse.difference(values, base))})
        seeds += [{"label": label, "gain": a - b} for a, b in zip(values, base, strict=True)]
    scales = {channel: {**spec, "legend": None} for channel, spec in _scales(labels).items()}
    axis = {"title": None, "labelFontSize": 12, "ticks": False, "domain": False, "labelPadding": 8}
    y = {"field": "label", "type": "nominal", "sort": list(labels.values()), "axis": axis}
    x = {
        "field": "gain",
        "type": "quantitative",
        "title": f"mean gain up to {budget:.2f} nats, less DPO's",
        "axis": {"tickCount": 5},
    }
    colour = scales["color"]
    tick = {"type": "tick", "thickness": 1.5, "size": 14, "opacity": 0.55}
    return {
        "title": "Area under the frontier, against DPO",
        "width": 280,
        "height": _HEIGHT,
        "layer": [
            _layer(tick, seeds, x=x, y=y, color=colour),
            _layer(
                {"type": "rule", "strokeWidth": 2.2},
                means,
                x={**x, "field": "gain_low"},
                x2={"field": "gain_high"},
                y=y,
                color=colour,
            ),
            _layer({"type": "point", "filled": True, "size": 90, "opacity": 1}, means, x=x, y=y, **scales),
            _reference_line("x", 0),
        ],
    }


def curves(experiment: Experiment, labels: dict[str, str]) -> Spec:
    """The KL of chosen and rejected held-out completions over training, a panel for every objective."""
    rows: list[Spec] = []
    for name, label in labels.items():
        found = [experiment.rows[name, CURVE_BETA, seed]["curves"] for seed in experiment.seeds]
        for side in _SIDES:
            rows.append({"label": label, "side": side, "step": 0, **_values("kl", Interval(0.0, 0.0))})
            # The last step of a seed may be its own: pairs that could not be used differ.
            for at in range(min(len(curve["step"]) for curve in found)):
                kl = Interval.of(curve[side][at] for curve in found)
                rows.append({"label": label, "side": side, "step": found[0]["step"][at], **_values("kl", kl)})
    colour = {
        "field": "side",
        "type": "nominal",
        "scale": {"domain": list(_SIDES), "range": list(_SIDES.values())},
        "legend": {"orient": "top", "symbolType": "stroke", "symbolSize": 400},
    }
    dash = {"field": "side", "type": "nominal", "scale": {"domain": list(_SIDES), "range": [[1, 0], [5, 3]]}}
    x = {"field": "step", "type": "quantitative", "title": "optimiser step"}
    y = {
        "field": "kl",
        "type": "quantitative",
        "title": "sequential KL, nats",
        "scale": {"domainMin": 0},
    }
    return {
        "title": f"KL(reference ‖ policy) on held-out pairs while training, β = {CURVE_BETA:g} "
        "(95 % bands over seeds; each panel has its own scale)",
        "data": {"values": rows},
        "facet": {
            "field": "label",
            "type": "nominal",
            "sort": list(labels.values()),
            "header": {"title": None, "labelFontSize": 12, "labelFontWeight": "bold"},
        },
        "columns": 4,
        "spacing": {"row": 20, "column": 18},
        "resolve": {"scale": {"y": "independent"}, "axis": {"x": "independent"}},
        "spec": {
            "width": 195,
            "height": 160,
            "layer": [
                _layer(
                    {"type": "area", "opacity": 0.16, "clip": True},
                    x=x,
                    y={**y, "field": "kl_low"},
                    y2={"field": "kl_high"},
                    color=colour,
                ),
                _layer({"type": "line", "strokeWidth": 2}, x=x, y=y, color=colour, strokeDash=dash),
            ],
        },
    }


def tracking(experiment: Experiment) -> Spec:
    """Estimates from a sparse and from a truncated cache over the exact KL, for every policy and step."""
    rows = [
        {"label": label, "kl": exact, "ratio": ratio}
        for kind, label in _ESTIMATES.items()
        for seed in experiment.seeds
        for exact, ratio in analyse.pair_ratios(experiment, seed, kind)
    ]
    x = {
        "field": "kl",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "title": "exact sequential KL on held-out pairs, nats (log scale)",
        "axis": {"format": ".3~r", "tickCount": 6},
    }
    y = {"field": "ratio", "type": "quantitative", "scale": {"zero": False}, "title": "estimate / exact"}
    colour = {
        "field": "label",
        "type": "nominal",
        "scale": {"domain": list(_ESTIMATES.values()), "range": ["#0072B2", "#CC79A7"]},
        "legend": {"orient": "bottom"},
    }
    point = {"type": "point", "filled": True, "size": 16, "opacity": 0.5}
    return {
        "title": "KL from a cache of 16 entries a token, over the exact one",
        "width": 390,
        "height": _HEIGHT,
        "layer": [
            _layer(point, rows, x=x, y=y, color=colour),
            _reference_line("y", 1),
        ],
    }
