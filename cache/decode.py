"""From a Parquet row group to scored pairs, as views of its buffers: no value is touched one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .pairs import SIDES, Pair, ScoredPair, Side, SideStatistics
from .schema import Statistic, side_columns

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
        entries: n, cached entries of the distribution at each token.

    Raises:
        DamagedShardError: nulls, or columns whose lengths disagree.

    """

    def __init__(self, table: pa.Table, entries: int) -> None:
        self.rows = len(table)
        self.bytes = table.nbytes
        self._pair_ids: list[str] = _whole(table, "pair_id").to_pylist()
        self._row: list[int] = _whole(table, "row").to_pylist()
        self._lists = {
            name: _lists(table, name, entries if "_dist_" in name else None)
            for name in table.column_names
            if name not in ("pair_id", "row")
        }
        for side in SIDES:
            tokens = self._lists[f"{side}_ids"].offsets
            for suffix in ("ref_logp", "ref_entropy", "dist_ids", "dist_logp"):
                column = self._lists.get(f"{side}_{suffix}")
                if column is not None and column.offsets != tokens:
                    raise DamagedShardError(f"{side}_{suffix} and {side}_ids disagree on their lengths")

    def __getitem__(self, row: int) -> ScoredPair:
        lists = self._lists
        pair = Pair(self._pair_ids[row], self._row[row], *(lists[name][row] for name in _BASE))
        return ScoredPair(pair, self._side("chosen", row), self._side("rejected", row))

    def _side(self, side: Side, row: int) -> SideStatistics:
        def get(suffix: str) -> Any:
            column = self._lists.get(f"{side}_{suffix}")
            return None if column is None else column[row]

        return SideStatistics(get("ref_logp"), get("ref_entropy"), get("dist_ids"), get("dist_logp"))


def _whole(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array, which a row group's column is unless something rewrote the file."""
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        raise DamagedShardError(f"{name} holds nulls")
    return array


def _lists(table: pa.Table, name: str, width: int | None) -> _Lists:
    """View a list column whose rows are [T * width] as rows of [T, width], or as [T] where width is None."""
    array = _whole(table, name)
    flat = array.values
    if flat.null_count:
        raise DamagedShardError(f"{name} holds nulls")
    offsets, values = np.asarray(array.offsets), flat.to_numpy(zero_copy_only=True)
    if width is not None:
        if len(values) % width or (offsets % width).any():
            raise DamagedShardError(f"{name} does not hold {width} entries for each token")
        offsets, values = offsets // width, values.reshape(-1, width)
    return _Lists(offsets.tolist(), values)
