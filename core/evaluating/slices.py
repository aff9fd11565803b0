"""Parts of the evaluated pairs: by the values of a column, or by bins of its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..options import nearest
from .table import Table

DEFAULT_BINS = 4
FEW_PROMPTS = 30
"""Below so many prompts the bootstrap's intervals are too narrow to be trusted; such slices are marked."""

MOST_VALUES = 20
"""So many values of a column of words have a slice each, the most frequent ones; the others share one."""


@dataclass(frozen=True)
class Slicing:
    """A column by which the pairs are cut up."""

    column: str
    bins: int | None
    """How many equally filled bins of its numbers; None where that was not said."""


@dataclass(frozen=True)
class Slice:
    """Some of a table's rows."""

    column: str
    label: str
    rows: np.ndarray
    """bool [N]."""


def parse_slices(given: Sequence[str]) -> list[Slicing]:
    """The values of ``--slice``.

    Raises:
        ConfigError: a number of bins that is none.
    """
    found = []
    for value in given:
        column, separator, bins = value.rpartition("=")
        if not separator:
            found.append(Slicing(value, None))
        elif not bins.isdecimal() or int(bins) < 1 or not column:
            raise ConfigError(
                f"--slice {value}: expected COLUMN, or COLUMN=BINS with at least 1 bin, such as "
                "prompt_tokens=4"
            )
        else:
            found.append(Slicing(column, int(bins)))
    return found


def check_columns(slicings: Sequence[Slicing], table: Table) -> None:
    """Refuse to cut by a column that the table has not.

    Raises:
        ConfigError: names the nearest.
    """
    known = [*table.columns, *table.figures]
    for one in slicings:
        if table.column(one.column) is None:
            raise ConfigError(
                f"--slice {one.column}: there is no such column; one of other data can be given with "
                f"--columns FILE{nearest(one.column, known)}"
            )


def cut(table: Table, slicing: Slicing) -> list[Slice]:
    """The slices of a table by a column, in the order of its values; rows without one come last.

    Raises:
        ConfigError: words in bins.
    """
    values = table.column(slicing.column)
    assert values is not None
    if values.dtype.kind == "f" or (values.dtype.kind in "iu" and slicing.bins is not None):
        return _by_number(values.astype(np.float64), slicing)
    if values.dtype.kind in "iu":
        return _by_number(values, slicing)
    if slicing.bins is not None:
        raise ConfigError(
            f"--slice {slicing.column}={slicing.bins}: {slicing.column} holds no numbers to put into bins; "
            f"give --slice {slicing.column}"
        )
    return _by_value(values.astype(str), values == None, slicing.column)  # noqa: E711 (each element)


def _by_number(values: np.ndarray, slicing: Slicing) -> list[Slice]:
    lacking = np.isnan(values.astype(np.float64))
    present = values[~lacking]
    bins = slicing.bins or DEFAULT_BINS
    distinct = np.unique(present)
    # So few values need no bins.
    edges = distinct[1:] if len(distinct) <= bins else _edges(present, bins)
    place = np.searchsorted(edges, values, side="right")
    found = []
    for at in range(len(edges) + 1):
        rows = (place == at) & ~lacking
        if rows.any():
            low, high = values[rows].min(), values[rows].max()
            label = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
            found.append(Slice(slicing.column, label, rows))
    return [*found, *_without(slicing.column, lacking)]


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Where the bins after the first begin, so that each holds as many of the values as ties allow."""
    return np.unique(np.quantile(values, np.arange(1, bins) / bins, method="higher"))


def _by_value(values: np.ndarray, lacking: np.ndarray, column: str) -> list[Slice]:
    distinct, counts = np.unique(values[~lacking], return_counts=True)
    frequent = np.sort(distinct[np.argsort(-counts, kind="stable")[:MOST_VALUES]])
    found = [Slice(column, str(value), (values == value) & ~lacking) for value in frequent]
    if len(distinct) > len(frequent):
        label = f"({len(distinct) - len(frequent):,} others)"
        found.append(Slice(column, label, ~np.isin(values, frequent) & ~lacking))
    return [*found, *_without(column, lacking)]


def _without(column: str, lacking: np.ndarray) -> list[Slice]:
    return [Slice(column, "(none)", lacking)] if lacking.any() else []
