"""Tables of a page: sortable by a button in each heading, readable without a script."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .page import rendered


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    numeric: bool = False
    """Numbers: aligned to the right, and the largest first when the heading is first pressed."""
    sortable: bool = True
    css: str = ""
    """Further classes of its cells, such as ``code``."""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, where that is not what it is sorted by."""

    shown: str | Markup
    by: float | str | None = None
    """What it is sorted by; None is last, either way."""


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str | Markup = "",
    id: str = "",
) -> Markup:
    """A table. Texts in it are escaped, Markup stays.

    Args:
        columns: of each row, in order.
        rows: texts, Markup, numbers, None or :class:`Cell`; the first cell of a row names it.
        caption: over it.
        id: of the ``<table>``.
    """
    cells = [[value if isinstance(value, Cell) else _cell(value) for value in row] for row in rows]
    return rendered("table.html.j2", columns=columns, rows=cells, caption=caption, id=id)


def number(value: float | int | None, digits: int = 4) -> Cell:
    """A number with so many significant digits, sorted by its full value; a dash where there is none."""
    if value is None or value != value:
        return Cell("\N{EN DASH}")
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}"
    return Cell(shown.replace("-", "\N{MINUS SIGN}", 1) if shown.startswith("-") else shown, value)


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, int | float):
        return number(value)
    return Cell(value if isinstance(value, Markup) else str(value), str(value))
