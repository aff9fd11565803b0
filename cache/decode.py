"""From a Parquet row group to scored pairs, as views of whole columns: no value is touched one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .entries import Entries, misfit, unpacked
from .pairs import SIDES, Pair, ScoredPair, Side, SideStatistics
from .schema import COLUMNS, ENTRY_COLUMNS, CachedStatistics, Statistic, side_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DamagedShardError(Exception):
    """The columns of a row group contradict each other."""


_BASE = ("prompt_ids", "chosen_ids", "rejected_ids")


def columns_of(statistics: frozenset[Statistic]) -> list[str]:
    """Names of the Parquet columns that give pairs with these statistics."""
    suffixes = side_columns(statistics)
    return ["pair_id", "row", *_BASE, *(f"{side}_{suffix}" for side in SIDES for suffix in suffixes)]


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list column: row i is values[offsets[i]:offsets[i + 1]]; values are [N] or [N, n]."""

    offsets: list[int]
    values: NDArray[Any]

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class RowGroup:
    """A decoded row group. Its pairs' arrays are read-only views that keep the group's memory alive.

    Args:
        table: the row group's columns, as named by `columns_of`.
        statistics: what the cache holds.

    Raises:
        DamagedShardError: nulls, or columns whose lengths disagree.

    """

    def __init__(self, table: pa.Table, statistics: CachedStatistics) -> None:
        self.rows = len(table)
        self._pair_ids: list[str] = _whole(table, "pair_id").to_pylist()
        self._row: list[int] = _whole(table, "row").to_pylist()
        self._lists = {name: _lists(table, name) for name in _BASE}
        for side in SIDES:
            tokens = self._lists[f"{side}_ids"].offsets
            for suffix, column in COLUMNS.items():
                name = f"{side}_{suffix}"
                if name in table.column_names and suffix not in ENTRY_COLUMNS:
                    self._lists[name] = _lists(table, name, statistics.width(suffix), column.dtype)
            if f"{side}_dist_ids" in table.column_names:
                self._lists |= _entries(table, side, statistics)
            for name, lists in self._lists.items():
                if name.startswith(f"{side}_") and lists.offsets != tokens:
                    raise DamagedShardError(f"{name} and {side}_ids disagree on their lengths")
        # By place, so that a pair is put together without looking names up.
        self._tokens = [self._lists[name] for name in _BASE]
        self._sides = [
            [self._lists.get(f"{side}_{name}") for name in SideStatistics.__slots__] for side in SIDES
        ]

    def __getitem__(self, row: int) -> ScoredPair:
        prompt, chosen, rejected = (lists[row] for lists in self._tokens)
        pair = Pair(self._pair_ids[row], self._row[row], prompt, chosen, rejected)
        chosen_side, rejected_side = (_side(columns, row) for columns in self._sides)
        return ScoredPair(pair, chosen_side, rejected_side)


def _side(columns: list[_Lists | None], row: int) -> SideStatistics:
    values: list[Any] = [None if column is None else column[row] for column in columns]
    return SideStatistics(*values)


def _whole(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array, which a row group's column is unless something rewrote the file."""
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        raise DamagedShardError(f"{name} holds nulls")
    return array


def _lists(
    table: pa.Table, name: str, width: int | None = None, dtype: type[np.generic] | None = None
) -> _Lists:
    """View a list column whose rows are [T * width] as rows of [T, width], or as [T] where width is None."""
    array = _whole(table, name)
    flat = array.values
    if flat.null_count:
        raise DamagedShardError(f"{name} holds nulls")
    offsets, values = np.asarray(array.offsets), flat.to_numpy(zero_copy_only=True)
    if dtype is not None and values.dtype != dtype:
        # A damaged value may not fit; verify finds it.
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(dtype)
        values.flags.writeable = False
    if width is not None:
        if len(values) % width or (offsets % width).any():
            raise DamagedShardError(f"{name} does not hold {width} entries for each token")
        offsets, values = offsets // width, values.reshape(-1, width)
    return _Lists(offsets.tolist(), values)


def _entries(table: pa.Table, side: Side, statistics: CachedStatistics) -> dict[str, _Lists]:
    """Return `dist_ids` and `dist_logp` of one side as rows of [T, n]."""
    columns = [_lists(table, f"{side}_{name}", dtype=COLUMNS[name].dtype) for name in ENTRY_COLUMNS]
    entries = Entries(*(column.values for column in columns))
    if wrong := misfit(entries, statistics.head, statistics.tail):
        raise DamagedShardError(f"{side}_dist_ids: {wrong}")
    head, tail, ids, logp = (column.offsets for column in columns)
    ends = np.concatenate([[0], np.cumsum(entries.head.astype(np.int64) + entries.tail)])
    if head != tail or ids != logp or ids != ends[head].tolist():
        raise DamagedShardError(f"the dist columns of {side} disagree on their lengths")
    wide = unpacked(entries, statistics.head, statistics.tail)
    for values in wide:
        values.flags.writeable = False
    return {
        f"{side}_{name}": _Lists(head, values) for name, values in zip(ENTRY_COLUMNS[2:], wide, strict=True)
    }
