"""The demonstration's figure: what reward each policy bought, and for how much KL."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# Blue, orange and green that stay apart in the common kinds of colour blindness and in print.
_COLOURS = {"dpo": "#0072B2", "tdpo1": "#D55E00", "tdpo2": "#009E73"}
_MARKERS = {"dpo": "o", "tdpo1": "s", "tdpo2": "^"}
_LABELS = {"dpo": "DPO", "tdpo1": "TDPO1", "tdpo2": "TDPO2"}
_GREY = "#555555"

_RC: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Fail early, before minutes of work, where the figure could not be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "tdpo demo draws its figure with matplotlib, which is not installed: pip install 'tdpo[demo]'"
        )


def kl_curves(events: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The chosen and rejected sequential KL of a run's ``metrics.jsonl``, in nats, by step.

    Evaluations on the held-out pairs where the run made any, else the means over training batches.

    Returns:
        ``{"step": [...], "chosen": [...], "rejected": [...]}``; empty lists when neither was logged.
    """
    for prefix in ("eval_", ""):
        names = (f"{prefix}kl/chosen", f"{prefix}kl/rejected")
        found = {event["step"]: event for event in events if all(name in event for name in names)}
        if found:
            points = [found[step] for step in sorted(found)]
            return {
                "step": [event["step"] for event in points],
                "chosen": [event[names[0]] for event in points],
                "rejected": [event[names[1]] for event in points],
            }
    return {"step": [], "chosen": [], "rejected": []}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw ``results`` (the content of results.json) as a PNG of two panels.

    Left: expected reward against sequential KL, a point for every checkpoint, the last one filled. Right: the
    sequential KL on chosen and rejected completions over training.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_RC):
        figure = Figure(figsize=(9.2, 3.7), layout=ConstrainedLayoutEngine(wspace=0.06))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw_frontier(left, results)
        _draw_curves(right, results)
        figure.savefig(path, dpi=200)


def _draw_frontier(axes: Any, results: Mapping[str, Any]) -> None:
    from matplotlib.patheffects import withStroke

    start = results["reference"]
    axes.axhline(start["reward"]["mean"], color=_GREY, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
    for name, points in results["policies"].items():
        path = [start, *points]
        kl = [point["forward_kl"]["mean"] for point in path]
        reward = [point["reward"]["mean"] for point in path]
        colour, marker = _COLOURS.get(name, _GREY), _MARKERS.get(name, "D")
        axes.plot(kl, reward, color=colour, linewidth=1.2, alpha=0.55, zorder=2)
        axes.plot(
            kl[1:-1],
            reward[1:-1],
            marker,
            color=colour,
            markersize=4.5,
            markerfacecolor="white",
            markeredgewidth=1.1,
            zorder=3,
        )
        last = points[-1]
        axes.errorbar(
            kl[-1],
            reward[-1],
            xerr=1.96 * last["forward_kl"]["error"],
            yerr=1.96 * last["reward"]["error"],
            fmt=marker,
            color=colour,
            markersize=7,
            elinewidth=1.1,
            zorder=4,
        )
        axes.annotate(
            _LABELS.get(name, name),
            (kl[-1], reward[-1] + 1.96 * last["reward"]["error"]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=6,
        )
    axes.errorbar(
        0, start["reward"]["mean"], yerr=1.96 * start["reward"]["error"], fmt="D", color="black", zorder=5
    )
    axes.annotate(
        "reference", (0, start["reward"]["mean"]), xytext=(8, -11), textcoords="offset points", color="black"
    )
    axes.text(
        0.98,
        0.03,
        "hollow: checkpoints on the way\nbars: 95 % intervals",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=_GREY,
    )
    axes.margins(x=0.1, y=0.12)
    _round_ticks(axes)
    axes.set_title("What the reward cost")
    axes.set_xlabel("sequential KL(reference ‖ policy) of own samples, nats")
    axes.set_ylabel("expected reward (mean sentiment)")


def _draw_curves(axes: Any, results: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    for name, curve in results["curves"].items():
        colour = _COLOURS.get(name, _GREY)
        if not curve["step"]:
            continue
        axes.plot(curve["step"], curve["chosen"], color=colour)
        axes.plot(curve["step"], curve["rejected"], color=colour, linestyle=(0, (4, 2)))
        axes.annotate(
            _LABELS.get(name, name),
            (curve["step"][-1], (curve["chosen"][-1] + curve["rejected"][-1]) / 2),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
    axes.legend(
        handles=[
            Line2D([], [], color=_GREY, label="chosen"),
            Line2D([], [], color=_GREY, linestyle=(0, (4, 2)), label="rejected"),
        ],
        loc="upper left",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    _round_ticks(axes)
    axes.set_title("KL while training")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("sequential KL on held-out pairs, nats")


def _round_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
