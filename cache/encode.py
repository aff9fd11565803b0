"""From scored pairs to a Parquet file: check them, lay them out as columns, write row groups."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .entries import Entries, packed
from .errors import CacheError
from .pairs import SIDES, SideStatistics
from .schema import (
    COLUMNS,
    ENTRY_COLUMNS,
    ROW_GROUP_ROWS,
    CachedStatistics,
    parquet_options,
    shard_schema,
    side_columns,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .pairs import ScoredPair, Side

# Bytes of a row group in memory, unless one pair alone takes more: a reader that shuffles holds dozens.
ROW_GROUP_BYTES = 8 << 20


def write_pairs(
    file: IO[bytes],
    scored: Sequence[ScoredPair],
    statistics: CachedStatistics,
    *,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> None:
    """Write scored pairs, in the order given, as one Parquet file of row groups of `row_group_rows` rows.

    Where whole distributions or hidden states are cached, row groups are kept to `ROW_GROUP_BYTES`.
    The same pairs give the same bytes with the same version of pyarrow.
    """
    schema = shard_schema(statistics)
    # Not a `with` block: where the disk is full, closing would fail again and hide the first error.
    writer = pq.ParquetWriter(file, schema, **parquet_options(schema))
    for group in _row_groups(scored, row_group_rows):
        writer.write_table(_table(group, schema, statistics), row_group_size=row_group_rows)
    writer.close()


def _row_groups(scored: Sequence[ScoredPair], rows: int) -> Iterator[Sequence[ScoredPair]]:
    start, held = 0, 0
    for at, one in enumerate(scored):
        size = sum(_bytes(one.side(side)) for side in SIDES)
        if at > start and (at - start == rows or held + size > ROW_GROUP_BYTES):
            yield scored[start:at]
            start, held = at, 0
        held += size
    if start < len(scored):
        yield scored[start:]


def _bytes(side: SideStatistics) -> int:
    return sum(values.nbytes for name in side.__slots__ if (values := getattr(side, name)) is not None)


def check_scored(one: ScoredPair, statistics: CachedStatistics) -> None:
    """Check that a scored pair holds what the cache is to hold.

    Raises:
        ValueError: a shape does not fit, or a statistic is missing or unasked for: a bug of the caller.
        CacheError: values that would poison every training run: not finite, or ids beyond the vocabulary.

    """
    for side in SIDES:
        tokens = len(one.pair.ids(side))
        if not tokens:
            raise ValueError(f"row {one.pair.row}: the {side} completion has no tokens")
        for column, shape in _shapes(tokens, statistics).items():
            values = getattr(one.side(side), column)
            found = None if values is None else np.shape(values)
            if found != shape:
                raise ValueError(f"row {one.pair.row}: {side} {column} should be {shape}, it is {found}")
        _check_values(one, side, statistics)


def _shapes(tokens: int, statistics: CachedStatistics) -> dict[str, tuple[int, ...] | None]:
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(SideStatistics.__slots__)
    for column in side_columns(statistics.names):
        if column in shapes:
            width = statistics.width(column)
            shapes[column] = (tokens,) if width is None else (tokens, width)
    return shapes


def _check_values(one: ScoredPair, side: Side, statistics: CachedStatistics) -> None:
    values = one.side(side)
    for column in ("ref_logp", "ref_entropy", "dist_logp", "ref_hidden"):
        numbers = getattr(values, column)
        if numbers is None:
            continue
        # An entry that a token does not have.
        absent = numbers == -np.inf if column == "dist_logp" else False
        if not (np.isfinite(numbers) | absent).all():
            raise CacheError(
                f"row {one.pair.row}: the reference gives a {side} {column} that is not finite: "
                "score it in another dtype, or check the model's weights"
            )
    if values.dist_ids is not None and int(np.max(values.dist_ids)) >= statistics.vocab_size:
        raise ValueError(
            f"row {one.pair.row}: a {side} dist_id is not below the vocabulary's {statistics.vocab_size}"
        )


def _table(scored: Sequence[ScoredPair], schema: pa.Schema, statistics: CachedStatistics) -> pa.Table:
    columns: dict[str, Any] = {
        "pair_id": pa.array([one.pair.pair_id for one in scored], pa.string()),
        "row": pa.array([one.pair.row for one in scored], pa.int64()),
    }
    lists: dict[str, list[NDArray[Any]]] = {
        name: [getattr(one.pair, name) for one in scored]
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    for side in SIDES:
        for suffix in side_columns(statistics.names):
            if suffix not in ENTRY_COLUMNS:
                lists[f"{side}_{suffix}"] = [
                    np.ravel(getattr(one.side(side), suffix)).astype(COLUMNS[suffix].dtype, copy=False)
                    for one in scored
                ]
        if "dist" in statistics.names:
            entries = [_entries(one.side(side), statistics) for one in scored]
            lists |= {
                f"{side}_{name}": list(parts)
                for name, parts in zip(ENTRY_COLUMNS, zip(*entries, strict=True), strict=True)
            }
    for name, parts in lists.items():
        columns[name] = _list_array(parts, schema.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _entries(side: SideStatistics, statistics: CachedStatistics) -> Entries:
    assert side.dist_ids is not None
    assert side.dist_logp is not None
    return packed(side.dist_ids, side.dist_logp.astype(np.float16, copy=False), statistics.head)


def _list_array(parts: list[NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    values = np.concatenate(parts).astype(kind.value_type.to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)
