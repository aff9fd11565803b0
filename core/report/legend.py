"""The legend of a section's charts: the runs, each with a box that shows or hides it in all charts."""

from collections.abc import Sequence

from markupsafe import Markup

from .gather import ReportedRun
from .page import rendered, template
from .theme import SERIES

# Of lines of training, and of each evaluation cache.
DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3], [1, 3])

# What a section with a legend brings, for Section.script and Section.style.
LEGEND_SCRIPT = template("legend.js")
LEGEND_STYLE = template("legend.css")


def legend(runs: Sequence[ReportedRun], kinds: Sequence[str] = ()) -> Markup:
    """The legend.

    Args:
        runs: in their order.
        kinds: of lines, in the order of :data:`DASHES`; told where there are several.
    """
    colours = [SERIES[run.number % len(SERIES)] for run in runs]
    dashes = [DASHES[place % len(DASHES)] for place in range(len(kinds))]
    return rendered(
        "legend.html.j2",
        runs=list(zip(runs, colours, strict=True)),
        kinds=list(zip(kinds, dashes, strict=True)) if len(kinds) > 1 else [],
    )
