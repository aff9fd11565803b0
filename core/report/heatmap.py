"""Token heatmaps: chosen and rejected side by side, every token coloured by what a run did to it."""

from collections.abc import Sequence
from pathlib import Path

from ...cache.pairs import SIDES
from .colours import colour_classes
from .heatmap_data import QUANTILE, Shown, heatmap_data
from .page import Section, figure, rendered
from .theme import SERIES, Spec
from .token_scores import RunTokens

_TEMPLATE = Path(__file__).parent / "template"

BUDGET = 1_500_000
"""Bytes of a page that heatmaps may take."""


def heatmap_section(
    shown: Sequence[Shown],
    runs: Sequence[RunTokens],
    *,
    id: str = "tokens",
    title: str = "Token by token",
    budget: int = BUDGET,
) -> Section:
    """The section of a page.

    Args:
        shown: the pairs, at least one.
        runs: at least one; each has scored just these pairs, in this order.
        id: of the section.
        title: its heading.
        budget: bytes of data; alternatives, and then tokens, are left out where they would be more.
    """
    data = heatmap_data(shown, runs, budget)
    reward = "implicit reward" if any(run.beta is not None for run in runs) else "log-ratio"
    return Section(
        id=id,
        title=title,
        html=rendered(
            "heatmap.html.j2",
            id=id,
            lead=_lead(len(shown), len(runs), data.alternatives),
            notes=[note for run in runs for note in run.notes],
            reward_figure=figure(f"{id}-reward", label=f"Running sum of the {reward} along the tokens"),
            kl_figure=figure(f"{id}-kl", label="Running sum of the forward KL along the tokens"),
        ),
        charts={f"{id}-reward": _running(reward), f"{id}-kl": _running("forward KL")},
        data=data.content,
        script=(_TEMPLATE / "heatmap.js").read_text(encoding="utf-8"),
        style=(_TEMPLATE / "heatmap.css").read_text(encoding="utf-8") + colour_classes(".heat"),
    )


def _lead(pairs: int, runs: int, alternatives: int) -> str:
    others = (
        f"and the reference's {alternatives} likeliest alternatives"
        if alternatives
        else "but no alternatives, which would make the page too large"
    )
    return (
        f"{f'{pairs} pairs' if pairs > 1 else 'One pair'}, scored by the polic{'ies' if runs > 1 else 'y'} "
        "against the cached reference. Point at a token, or move with the arrow keys, for all its values "
        f"{others}. A quantity has one scale of colours for all pairs and runs (implicit rewards: all runs "
        f"of one beta), which {100 * QUANTILE:.0f} % of the tokens are within."
    )


def _running(what: str) -> Spec:
    """A chart of running sums along chosen and rejected; the page's script puts the numbers in."""
    return {
        "title": f"Running sum of the {what}",
        "width": "container",
        "height": 180,
        "data": {"name": "sums", "values": []},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"y": {"datum": 0}}},
            {
                "mark": {"type": "line", "interpolate": "linear"},
                "encoding": {
                    "x": {"field": "token", "type": "quantitative", "title": "token"},
                    "y": {"field": "sum", "type": "quantitative", "title": "nats"},
                    "color": {
                        "field": "side",
                        "type": "nominal",
                        "title": None,
                        "scale": {"domain": list(SIDES), "range": list(SERIES[:2])},
                    },
                },
            },
        ],
    }
