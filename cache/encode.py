"""From scored pairs to a Parquet file: check them, lay them out as columns, write row groups."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import CacheError
from .pairs import SIDES
from .schema import ROW_GROUP_ROWS, CachedStatistics, parquet_options, shard_schema, side_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .pairs import ScoredPair, Side


def write_pairs(
    file: IO[bytes],
    scored: Sequence[ScoredPair],
    statistics: CachedStatistics,
    *,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> None:
    """Write scored pairs, in the order given, as one Parquet file of row groups of `row_group_rows` rows.

    The same pairs give the same bytes with the same version of pyarrow.
    """
    schema = shard_schema(statistics)
    # Not a `with` block: where the disk is full, closing would fail again and hide the first error.
    writer = pq.ParquetWriter(file, schema, **parquet_options(schema))
    for start in range(0, len(scored), row_group_rows):
        group = scored[start : start + row_group_rows]
        writer.write_table(_table(group, schema, statistics), row_group_size=row_group_rows)
    writer.close()


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
    dist = (tokens, statistics.entries) if "dist" in statistics.names else None
    return {
        "ref_logp": (tokens,),
        "ref_entropy": (tokens,) if statistics.entropy else None,
        "dist_ids": dist,
        "dist_logp": dist,
    }


def _check_values(one: ScoredPair, side: Side, statistics: CachedStatistics) -> None:
    values = one.side(side)
    for column in ("ref_logp", "ref_entropy", "dist_logp"):
        numbers = getattr(values, column)
        if numbers is not None and not np.isfinite(numbers).all():
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
            lists[f"{side}_{suffix}"] = [np.ravel(getattr(one.side(side), suffix)) for one in scored]
    for name, parts in lists.items():
        columns[name] = _list_array(parts, schema.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _list_array(parts: list[NDArray[Any]], kind: pa.ListType) -> pa.ListArray:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    values = np.concatenate(parts).astype(kind.value_type.to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)
