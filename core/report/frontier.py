"""Reward against KL: what a policy gained, for how far it went from its reference."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..config.evaluation import figure_prefix
from .curves import colour_scale
from .gather import ReportedRun
from .legend import LEGEND_SCRIPT, LEGEND_STYLE, legend
from .page import Section, figure
from .theme import Spec, chart_of_runs

EVAL_FOLDER = "eval"
EVAL_FILE = "eval.json"
_HEIGHT = 320
_REWARD, _KL = "samples/reward", "samples/kl"


def frontier_section(runs: Sequence[ReportedRun]) -> Section:
    """Rewards of the policies' own samples, where they were measured, and margins of held-out pairs."""
    charts: dict[str, Spec] = {}
    on_paper: dict[str, Spec] = {}
    places: list[Markup] = []
    if generated := [point for run in runs for point in _generated(run)]:
        charts["frontier-samples"] = _samples_spec(generated, own_legend=False)
        on_paper["frontier-samples"] = _samples_spec(generated, own_legend=True)
        places.append(
            figure("frontier-samples", _samples_caption(generated), height=_HEIGHT + 70, css="wide")
        )
    without = [run for run in runs if run.label not in {point.label for point in generated}]
    if trained := [point for run in runs for point in _held_out(run)]:
        charts["frontier-pairs"] = _pairs_spec(trained, own_legend=False)
        on_paper["frontier-pairs"] = _pairs_spec(trained, own_legend=True)
        places.append(figure("frontier-pairs", _PAIRS_CAPTION, height=_HEIGHT + 70, css="wide"))
    html = Markup('{}<div class="figures">{}</div>').format(
        legend(runs) if places else "", Markup("\n").join(places)
    )
    for note in _notes(runs, without, bool(trained)):
        html += Markup('<p class="quiet">{}</p>').format(note)
    return Section(
        "frontier",
        "Reward against KL",
        html,
        charts,
        on_paper=on_paper,
        script=LEGEND_SCRIPT,
        style=LEGEND_STYLE,
    )


@dataclass(frozen=True)
class _Sampled:
    """A policy's own samples on an evaluation cache, with intervals where there are some."""

    number: int
    label: str
    cache: str
    reward: dict[str, float | None]
    """value, low, high."""
    kl: dict[str, float | None]
    reference: float | None
    """Mean reward of the reference's samples."""


def _generated(run: ReportedRun) -> Iterator[_Sampled]:
    document = read_evaluation(run)
    for one in document.get("evaluations", []):
        figures = one.get("figures") or {}
        reward, kl = figures.get(_REWARD) or {}, figures.get(_KL) or {}
        if reward.get("value") is not None and kl.get("value") is not None:
            reference = figures.get(f"{_REWARD}/reference") or {}
            cache = one.get("cache") or ""
            yield _Sampled(run.number, run.label, cache, reward, kl, reference.get("value"))


def read_evaluation(run: ReportedRun) -> dict[str, Any]:
    """What ``tdpo eval`` wrote into a run's folder; empty where it did not, or what it wrote is cut."""
    try:
        found = json.loads((run.run.path / EVAL_FOLDER / EVAL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _samples_spec(points: Sequence[_Sampled], *, own_legend: bool) -> Spec:
    rows = [
        {
            "run": one.label,
            "cache": one.cache,
            "reward": one.reward["value"],
            "low": one.reward.get("low"),
            "high": one.reward.get("high"),
            "kl": one.kl["value"],
            "kl_low": one.kl.get("low"),
            "kl_high": one.kl.get("high"),
        }
        for one in points
    ]
    x = {"type": "quantitative", "scale": {"zero": True}, "title": "sequential KL to the reference (nats)"}
    y = {"type": "quantitative", "scale": {"zero": False}, "title": "reward"}
    colours = _colours(points, own_legend)
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "reward", "type": "quantitative", "format": ".4~g"},
        {"field": "kl", "type": "quantitative", "format": ".4~g", "title": "KL (nats)"},
        *([{"field": "cache", "type": "nominal"}] if any(one.cache for one in points) else []),
    ]
    # One mean a cache: policies are compared with the same samples of the reference.
    references = {one.cache: one.reference for one in points if one.reference is not None}
    layers: list[Spec] = [
        {
            "data": {"values": [{"kl": 0, "reward": value} for value in references.values()]},
            "mark": {
                "type": "point",
                "shape": "cross",
                "filled": True,
                "color": "var(--soft)",
                "size": 90,
            },
            "encoding": {"x": {**x, "field": "kl"}, "y": {**y, "field": "reward"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                "x": {**x, "field": "kl"},
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": colours,
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                "x": {**x, "field": "kl_low"},
                "x2": {"field": "kl_high"},
                "y": {**y, "field": "reward"},
                "color": colours,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {
                "x": {**x, "field": "kl"},
                "y": {**y, "field": "reward"},
                "color": colours,
                "tooltip": tooltip,
            },
        },
    ]
    return chart_of_runs("Reward of the policy's own samples against KL", _HEIGHT, rows, layers)


def _samples_caption(points: Sequence[_Sampled]) -> str:
    parts = ["Each policy's samples on held-out prompts, as tdpo eval --generate drew and judged them."]
    if any(one.reward.get("low") is not None for one in points):
        parts.append("Bars are intervals over prompts.")
    if any(one.reference is not None for one in points):
        parts.append("The grey cross is the reference, at a KL of 0.")
    return " ".join(parts)


@dataclass(frozen=True)
class _HeldOut:
    """A run at one of its evaluations."""

    number: int
    label: str
    cache: str
    step: int
    kl: float
    margin: float
    accuracy: float | None
    is_last: bool


def _held_out(run: ReportedRun) -> Iterator[_HeldOut]:
    """The run at its evaluations on its first cache that has a KL."""
    for name in run.run.eval_caches:
        prefix = figure_prefix(name)
        curves = {
            figure: dict(run.run.curve(f"{prefix}{figure}"))
            for figure in ("rewards/margins", "kl/chosen", "kl/rejected", "rewards/accuracies")
        }
        margins, chosen, rejected, accuracies = curves.values()
        steps = [step for step in margins if step in chosen and step in rejected]
        kept = run.run.best_step or max(steps, default=0)
        for step in steps:
            kl = (chosen[step] + rejected[step]) / 2
            yield _HeldOut(
                run.number, run.label, name, step, kl, margins[step], accuracies.get(step), step == kept
            )
        if steps:
            return


_PAIRS_CAPTION = (
    "Not a reward: the implicit reward margin of held-out pairs, which each objective scales in its own "
    "way, against the sequential KL(reference \N{PARALLEL TO} policy) on their completions, the mean of "
    "chosen and rejected. A line follows a run through its evaluations; the large point is the policy that "
    "it kept."
)


def _pairs_spec(points: Sequence[_HeldOut], *, own_legend: bool) -> Spec:
    rows = [
        {
            "run": one.label,
            "step": one.step,
            "kl": one.kl,
            "margin": one.margin,
            "accuracy": one.accuracy,
            "kept": one.is_last,
        }
        for one in points
    ]
    x = {"field": "kl", "type": "quantitative", "title": "sequential KL to the reference (nats)"}
    y = {"field": "margin", "type": "quantitative", "title": "implicit reward margin (nats)"}
    colours = _colours(points, own_legend)
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "step", "type": "quantitative", "format": ","},
        {"field": "kl", "type": "quantitative", "format": ".4~g", "title": "KL (nats)"},
        {"field": "margin", "type": "quantitative", "format": ".4~g"},
        {"field": "accuracy", "type": "quantitative", "format": ".3~f"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "opacity": 0.7},
            "encoding": {"x": x, "y": y, "color": colours, "order": {"field": "step"}},
        },
        {
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": colours,
                "size": {"condition": {"test": "datum.kept", "value": 110}, "value": 28},
                "tooltip": tooltip,
            },
        },
    ]
    return chart_of_runs("Implicit reward margin of held-out pairs against KL", _HEIGHT, rows, layers)


def _colours(points: Sequence[Any], own_legend: bool) -> Spec:
    runs = list(dict.fromkeys((one.number, one.label) for one in points))
    return {
        "field": "run",
        "type": "nominal",
        "title": None,
        "scale": colour_scale(runs),
        "legend": {"symbolType": "circle", "columns": 4} if own_legend else None,
    }


def _notes(runs: Sequence[ReportedRun], without: Sequence[ReportedRun], has_margins: bool) -> Iterator[str]:
    if without:
        which = "None of these runs was" if len(without) == len(runs) else f"{_names(without)}: not"
        yield (
            f"{which} sampled from. For the reward of its own samples against its KL, run "
            f"tdpo eval {without[0].run.path} --generate 200 --reward MODULE:FUNCTION (or --reward-model "
            "MODEL), and the report again."
        )
    if not has_margins:
        yield (
            "No run logged the KL of held-out pairs: train with --eval-cache, from caches that hold "
            "something of the reference's distributions (tdpo cache build --head)."
        )


def _names(runs: Sequence[ReportedRun]) -> str:
    return ", ".join(run.label for run in runs)
