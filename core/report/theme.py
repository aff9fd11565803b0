"""How charts look: one palette and one configuration, on the page by CSS variables, on paper by colours.

The hues are those of Okabe and Ito (2008), told apart by colour-blind readers too; the dark page has lighter
ones of the same order.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

SERIES = tuple(f"var(--series-{number})" for number in range(1, 9))
"""Colours of runs, in order. Black and yellow come last: one is the ink's, the other is faint on paper."""

# The page's light theme in page.css, and what is used where there is no page.
PAPER = {
    "--ground": "#ffffff",
    "--ink": "#1b1f24",
    "--soft": "#57606a",
    "--line": "#e3e6ea",
    "--accent": "#0072b2",
    "--series-1": "#0072b2",
    "--series-2": "#d55e00",
    "--series-3": "#009e73",
    "--series-4": "#cc79a7",
    "--series-5": "#e69f00",
    "--series-6": "#56b4e9",
    "--series-7": "#1b1f24",
    "--series-8": "#b8ab00",
}

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

PAGE_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": _FONT,
    "padding": 4,
    "autosize": {"type": "fit-x", "contains": "padding"},
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--soft)",
        "tickColor": "var(--soft)",
        "gridColor": "var(--line)",
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 6,
        "tickSize": 4,
        "labelFlush": False,
    },
    "axisX": {"grid": False, "tickCount": 6},
    "axisY": {"domain": False, "ticks": False, "tickCount": 5},
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 240,
        "orient": "top",
        "symbolStrokeWidth": 2.5,
    },
    "title": {
        "color": "var(--ink)",
        "subtitleColor": "var(--soft)",
        "fontSize": 13,
        "fontWeight": 600,
        "anchor": "start",
        "frame": "group",
        "offset": 8,
    },
    "header": {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "labelFontSize": 12},
    "range": {"category": list(SERIES)},
    "line": {"strokeWidth": 1.75, "strokeJoin": "round"},
    "bar": {"fill": "var(--accent)"},
    "rule": {"stroke": "var(--soft)"},
}
"""Vega-Lite's ``config`` of every chart of a page."""


def chart_of_runs(title: str, height: int, rows: Sequence[Spec], layers: Sequence[Spec]) -> Spec:
    """A chart as wide as its place, whose ``rows`` each name a ``run``; the page's legend can hide runs."""
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": "container",
        "height": height,
        "data": {"values": rows},
        "params": [{"name": "hidden", "value": []}],
        "transform": [{"filter": "indexof(hidden, datum.run) < 0"}],
        "layer": layers,
    }


def on_paper(value: Any) -> Any:
    """A spec or a configuration with colours in the place of the page's CSS variables."""
    if isinstance(value, Mapping):
        return {name: on_paper(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [on_paper(one) for one in value]
    if isinstance(value, str) and (found := re.fullmatch(r"var\((--[\w-]+)\)", value)):
        return PAPER[found[1]]
    return value
