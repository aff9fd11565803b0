"""Training curves: every figure over steps, all runs in one chart, training and evaluation told apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..runs.figures import kept_figures
from .gather import TRAINING, Line, ReportedRun, chosen_figures
from .legend import DASHES, LEGEND_SCRIPT, LEGEND_STYLE, legend
from .page import Section, figure, rendered
from .tables import Column, number, table
from .theme import SERIES, Spec, chart_of_runs
from .thinning import Grid, Point

HEIGHT = 190

# Figure -> its title and unit, in the order in which they are drawn; those of objectives and plugins follow.
TITLES = {
    "loss": "Loss",
    "rewards/accuracies": "Reward accuracy (share of pairs)",
    "rewards/margins": "Reward margin, chosen \N{MINUS SIGN} rejected (nats)",
    "rewards/chosen": "Implicit reward of chosen (nats)",
    "rewards/rejected": "Implicit reward of rejected (nats)",
    "kl/chosen": "Sequential KL of chosen (nats)",
    "kl/rejected": "Sequential KL of rejected (nats)",
    "kl/margin": "Sequential KL, rejected \N{MINUS SIGN} chosen (nats)",
    "logps/chosen": "Log-probability of chosen (nats)",
    "logps/rejected": "Log-probability of rejected (nats)",
    "entropy": "Entropy of the policy (nats per token)",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Throughput (tokens/s)",
    "peak_memory_gb": "Peak memory (GB)",
    "num_tokens": "Tokens trained on",
}
_ABOUT = {
    "loss": "Mean over pairs of the objective's own loss; different objectives are on different scales.",
    "rewards/accuracies": "Share of pairs whose chosen completion has the larger implicit reward.",
    "kl/margin": "The difference that the TDPO paper draws: above 0 the policy moves further from the "
    "reference on rejected completions than on chosen ones.",
    "kl/chosen": "Sum over a completion's tokens of KL(reference \N{PARALLEL TO} policy).",
    "peak_memory_gb": "Largest so far, of the first process.",
}
# Logged once, or of no use as a curve.
_NO_CURVES = {
    "runtime", "samples_per_second", "steps_per_second", "train_runtime", "train_samples_per_second",
    "train_steps_per_second", "total_flos", "train_loss",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A figure's lines over all runs."""

    figure: str
    lines: list[Line]

    @property
    def title(self) -> str:
        """Of its chart, with the unit."""
        return TITLES.get(self.figure, self.figure)


def known_figures(runs: Sequence[ReportedRun]) -> list[str]:
    """All figures that the runs logged and that have a curve: the known ones first."""
    logged = {name for run in runs for name in run.figures} - _NO_CURVES
    return [*(name for name in TITLES if name in logged), *sorted(logged - TITLES.keys())]


def curves_section(runs: Sequence[ReportedRun], metrics: Sequence[str] = ()) -> Section:
    """The curves of all runs, and a table of their last figures.

    Raises:
        ConfigError: ``metrics`` names a figure that no run logged.
    """
    figures = chosen_figures(metrics, known_figures(runs))
    curves = [Curve(name, [line for run in runs for line in run.lines(name)]) for name in figures]
    charts = {f"curve-{curve.figure}": curve_spec(curve) for curve in curves}
    on_paper = {f"curve-{curve.figure}": curve_spec(curve, own_legend=True) for curve in curves}
    places = [
        figure(f"curve-{curve.figure}", caption(curve), height=HEIGHT + 56, label=_label(curve))
        for curve in curves
    ]
    html = rendered(
        "curves.html.j2",
        legend=legend(runs, _kinds([line for curve in curves for line in curve.lines])),
        many=len(runs) > len(SERIES),
        figures=Markup("\n").join(places),
        last=_last_figures(runs, figures),
    )
    return Section(
        "curves",
        "Training curves",
        html,
        charts,
        on_paper=on_paper,
        script=LEGEND_SCRIPT,
        style=LEGEND_STYLE,
    )


def colour_scale(runs: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Vega-Lite's scale of runs: number and label of each."""
    return {
        "domain": [label for _, label in runs],
        "range": [SERIES[number % len(SERIES)] for number, _ in runs],
    }


def caption(curve: Curve) -> str:
    """What is to be said under the chart."""
    parts = [_ABOUT[curve.figure]] if curve.figure in _ABOUT else []
    grid = Grid.over(curve.lines)
    if grid.width > 1:
        parts.append(
            f"Each point is the mean of {grid.width} steps; the bands reach from their smallest value to "
            "their largest."
        )
    values = [value for line in curve.lines for _, value in line.points]
    if wrong := sum(value - value != 0 for value in values):
        parts.append(f"{wrong:,} values that are not finite are left out.")
    return " ".join(parts)


def curve_spec(curve: Curve, *, own_legend: bool = False) -> Spec:
    """The chart of a figure: a line for each run and kind, and the values of all of them under the mouse.

    Args:
        curve: the lines.
        own_legend: whether the chart has a legend of its own; the page has one for all charts.
    """
    grid = Grid.over(curve.lines)
    drawn = [(line, grid.points(line)) for line in curve.lines]
    rows = [
        _row(number, line, point, grid) for number, (line, points) in enumerate(drawn) for point in points
    ]
    kinds = _kinds(curve.lines)
    runs = list(dict.fromkeys((line.run, line.label) for line in curve.lines))
    x = {"field": "step", "type": "quantitative", "title": "step", "scale": {"nice": False}}
    colours = {
        "field": "run",
        "type": "nominal",
        "title": None,
        "scale": colour_scale(runs),
        "legend": {"symbolType": "stroke", "columns": 3} if own_legend else None,
    }
    dashes = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": kinds, "range": [list(one) for one in DASHES[: len(kinds)]]},
        "legend": {"symbolType": "stroke"} if own_legend and len(kinds) > 1 else None,
    }
    value = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    lines = {
        "mark": {"type": "line", "clip": True},
        "encoding": {"x": x, "y": value, "color": colours, "strokeDash": dashes, "detail": {"field": "line"}},
    }
    layers: list[Spec] = [lines]
    if grid.width > 1:
        band = {
            "mark": {"type": "area", "opacity": 0.16, "line": False},
            "encoding": {
                "x": x,
                "y": {**value, "field": "low"},
                "y2": {"field": "high"},
                "color": colours,
                "detail": {"field": "line"},
            },
        }
        layers.insert(0, band)
    dotted = [n for n, (line, points) in enumerate(drawn) if len(points) < 2 or line.kind != TRAINING]
    if dotted and grid.width == 1:
        layers.append(_dots(x, value, colours, dotted))
    return chart_of_runs(
        curve.title, HEIGHT, rows, [*layers, *_under_the_mouse(x, value, colours, drawn, grid)]
    )


def _row(number: int, line: Line, point: Point, grid: Grid) -> dict[str, Any]:
    row = {"line": number, "run": line.label, "kind": line.kind, "step": point.step, "value": point.value}
    return {**row, "steps": point.steps, "low": point.low, "high": point.high} if grid.width > 1 else row


def _dots(x: Spec, value: Spec, colours: Spec, numbers: list[int]) -> Spec:
    """Dots at the values of evaluations, which are few, and of lines that are but a point."""
    return {
        "transform": [{"filter": {"field": "line", "oneOf": numbers}}],
        "mark": {"type": "point", "filled": True, "size": 16, "opacity": 1},
        "encoding": {"x": x, "y": value, "color": colours},
    }


def _under_the_mouse(
    x: Spec, value: Spec, colours: Spec, drawn: Sequence[tuple[Line, list[Point]]], grid: Grid
) -> list[Spec]:
    """A rule at the nearest step with the values of all lines there, and dots on them."""
    places = ["step", "steps"] if grid.width > 1 else ["step"]
    # The mouse is over the cell of the nearest rule, whose datum is the cell's.
    row = "(datum.datum || datum)"
    parts = [f"{{step: {row}.steps}}" if grid.width > 1 else f"{{step: format({row}.step, ',')}}"]
    for place, (line, _) in enumerate(drawn):
        # Vega's expressions read texts as JavaScript does.
        name, field = json.dumps(f"{line.label} ({line.kind})"), f"{row}['{place}']"
        parts.append(f"isValid({field}) ? {{{name}: format({field}, '.5~g')}} : {{}}")
    return [
        {
            "transform": [{"pivot": "line", "value": "value", "groupby": places}],
            "mark": {"type": "rule", "tooltip": {"expr": f"merge({', '.join(parts)})"}},
            "encoding": {
                "x": x,
                "opacity": {"condition": {"param": "at", "value": 0.7, "empty": False}, "value": 0},
            },
            "params": [
                {
                    "name": "at",
                    "select": {
                        "type": "point",
                        "fields": ["step"],
                        "nearest": True,
                        "on": "pointermove",
                        "clear": "pointerout",
                    },
                }
            ],
        },
        {
            "transform": [{"filter": {"param": "at", "empty": False}}],
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
            "encoding": {"x": x, "y": value, "color": colours},
        },
    ]


def _kinds(lines: Sequence[Line]) -> list[str]:
    found = dict.fromkeys(line.kind for line in lines)
    return sorted(found, key=lambda kind: (kind != TRAINING, list(found).index(kind)))


def _label(curve: Curve) -> str:
    """The chart in words: where each line ends."""
    ends = [
        f"{line.label} ({line.kind}) {line.points[-1][1]:.4g} at step {line.points[-1][0]:,}"
        for line in curve.lines
    ]
    return f"{curve.title} over steps. Last values: {'; '.join(ends)}"


def _last_figures(runs: Sequence[ReportedRun], figures: Sequence[str]) -> Markup:
    """A row for each run and kind: of the policy that the run kept."""
    rows = []
    for run in runs:
        found = kept_figures(run.run.events, run.run.best_step)
        for kind, prefix in reversed(run.kinds.items()):
            values = [found.get(f"{prefix}{name}") for name in figures]
            if any(value is not None for value in values):
                step = run.run.best_step or run.run.steps
                rows.append([run.label, kind, step, *(number(value) for value in values)])
    columns = [Column("run"), Column("pairs of"), Column("step", numeric=True)]
    columns += [Column(name.replace("/", " ").replace("_", " "), numeric=True) for name in figures]
    return table(columns, rows, id="last-figures", caption="Last figures of the policy that each run kept")
