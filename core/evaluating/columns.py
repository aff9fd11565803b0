"""Columns of other data, brought to the evaluated pairs by their id or by their row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.opening import open_named
from ..errors import ConfigError, DataError
from .table import Table, column_name

_KEYS = ("pair_id", "row")


@dataclass(frozen=True)
class OtherColumns:
    """Further columns of pairs, from a file."""

    place: str
    key: str
    """``pair_id``, or ``row``: the index of the pair in the data that the cache was built from."""
    rows: Mapping[Any, int]
    """Value of the key -> place in the columns."""
    values: Mapping[str, np.ndarray]
    """Name -> float64 where all are numbers, with NaN for none; else object, with None for none."""
    in_order: bool
    """Whether there is no column of keys, so that the file must be all of that data, in its order."""

    def check(self, reader: Any) -> None:
        """Refuse a cache that these are not columns of.

        Raises:
            DataError: none of the cache's pairs is here, or this is not the data that it was built from.
        """
        source_rows = reader.manifest.source_rows
        if self.in_order and len(self.rows) != source_rows:
            raise DataError(
                f"--columns {self.place}: has {len(self.rows):,} rows and neither a column pair_id nor row, "
                f"and {reader.location} was built from {source_rows:,} rows; add one of these columns to it"
            )
        pairs = (one.pair for one in reader.iter(statistics={"ref_logp"}))
        if not any((pair.pair_id if self.key == "pair_id" else pair.row) in self.rows for pair in pairs):
            raise DataError(
                f"--columns {self.place}: its column {self.key} has none of the pairs of {reader.location}; "
                "give data whose pair_id or row are those of the cache"
            )

    def of(self, table: Table) -> dict[str, np.ndarray]:
        """The columns of a table's pairs; pairs that the file does not have get none."""
        keys = (table.ids if self.key == "pair_id" else table.columns["row"]).tolist()
        places = np.array([self.rows.get(key, -1) for key in keys], np.int64)
        return {name: _placed(values, places) for name, values in self.values.items()}


def open_columns(places: Sequence[str], known: Sequence[str]) -> list[OtherColumns]:
    """The data of ``--columns``.

    Args:
        places: of files.
        known: names of columns that are there without them.

    Raises:
        DataError: data that cannot be read, or in which a pair comes twice.
        ConfigError: a name that is taken.
    """
    found: list[OtherColumns] = []
    for place in places:
        one = _open(place)
        check_names([*found, one], known)
        found.append(one)
    return found


def check_names(columns: Sequence[OtherColumns], known: Sequence[str]) -> None:
    """Refuse columns whose name is taken, also as it is written into a file.

    Raises:
        ConfigError: says by what.
    """
    taken = {column_name(name): "the evaluation itself" for name in known}
    for one in columns:
        for name in one.values:
            if (other := taken.get(column_name(name))) is not None:
                raise ConfigError(
                    f"--columns {one.place}: its column {name!r} is also one of {other}; rename it"
                )
            taken[column_name(name)] = one.place


def _open(place: str) -> OtherColumns:
    try:
        data: Any = open_named([place], "train", columns=()).rows
    except DataError as error:
        raise DataError(f"--columns {error}") from error
    columns = {name: data[name][:] for name in data.column_names}
    key = next((name for name in _KEYS if name in columns), None)
    keys = list(range(len(data))) if key is None else columns[key]
    if key == "row":
        keys = [int(one) if str(one).isdecimal() else one for one in keys]
    rows = {one: at for at, one in enumerate(keys)}
    if len(rows) < len(keys):
        twice = next(one for at, one in enumerate(keys) if rows[one] != at)
        raise DataError(f"--columns {place}: {key} {twice} comes twice; give each pair one row")
    values = {
        name: _array(column) for name, column in columns.items() if name not in _KEYS and _single(column)
    }
    return OtherColumns(place, key or "row", rows, values, key is None)


def _single(column: Sequence[Any]) -> bool:
    """Whether a column holds single values, and no lists or objects."""
    return not any(isinstance(one, list | dict) for one in column)


def _array(column: Sequence[Any]) -> np.ndarray:
    lacking = [one is None or one == "" for one in column]
    try:
        if not any(isinstance(one, bool) for one in column):
            numbers = [np.nan if no else float(one) for one, no in zip(column, lacking, strict=True)]
            return np.array(numbers, np.float64)
    except (TypeError, ValueError):
        pass
    values = np.empty(len(column), object)
    values[:] = [None if no else str(one) for one, no in zip(column, lacking, strict=True)]
    return values


def _placed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    found = values[np.maximum(places, 0)]
    found[places < 0] = np.nan if values.dtype.kind == "f" else None
    return found
