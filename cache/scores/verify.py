"""Verifying score sets: files against the ledger, rows against the base, values against their type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import CacheError
from ..manifest import MANIFEST_NAME
from .sets import SCORES_FOLDER, is_score_file, score_schema, scores_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from ..ledger import Shard
    from ..manifest import Manifest
    from ..storage.files import Folder
    from .sets import ScoreColumn, ScoreSet, ScoreShard

Fault = tuple[str, int | None, str | None, str]
"""File, source row, column, what is wrong."""

_AGAIN = "run the tdpo cache add command that made it again"
# Nats by which rounding in float32 may lift a log-probability above 0.
_SLACK = 1e-3


def check_scores(folder: Folder, manifest: Manifest) -> Iterator[Fault]:
    """Yield the faults of a cache's score sets, as far as they show without the models that made them.

    Pairs of a base shard that cannot be read are not looked at: that fault is the base's.
    """
    inside = scores_folder(folder)
    named = {shard.file for one in manifest.scores.values() for shard in one.shards}
    for file in inside.names():
        if is_score_file(file) and not file.endswith(".tmp") and file not in named:
            yield MANIFEST_NAME, None, None, f"{SCORES_FOLDER}/{file} is in no ledger: move it elsewhere"
    base = {shard.index: shard for shard in manifest.shards if shard.file is not None}
    for name, one in manifest.scores.items():
        lacking = base.keys() - {shard.index for shard in one.shards}
        if lacking or not one.complete:
            covered = sum(base[shard.index].rows for shard in one.shards if shard.index in base)
            what = f"cover {covered:,} of {manifest.rows:,} pairs: {_AGAIN}"
            yield MANIFEST_NAME, None, None, f"the scores {name} {what}"
    for index, shard in base.items():
        entries = [
            (name, one, entry)
            for name, one in manifest.scores.items()
            for entry in one.shards
            if entry.index == index
        ]
        pairs = _Pairs.of(folder, shard) if entries else None
        for name, one, entry in entries:
            label = f"{SCORES_FOLDER}/{entry.file}"
            vocab_size = manifest.identity["statistics"]["vocab_size"]
            for row, column, what in _check_file(inside, name, one, entry, pairs, vocab_size):
                yield label, row, column, what


@dataclass(frozen=True)
class _Pairs:
    """The base shard's pairs, as far as scores must agree with them."""

    place: dict[str, int]
    row: NDArray[np.int64]
    tokens: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, folder: Folder, shard: Shard) -> _Pairs | None:
        try:
            with folder.parquet(str(shard.file)) as file:
                table = file.read(columns=["pair_id", "row", "chosen_ids", "rejected_ids"], use_threads=False)
            ids = table.column("pair_id").to_pylist()
            lengths = {
                side: table.column(f"{side}_ids").combine_chunks().value_lengths().to_numpy().astype(np.int64)
                for side in ("chosen", "rejected")
            }
            return cls({each: at for at, each in enumerate(ids)}, table.column("row").to_numpy(), lengths)
        except (CacheError, pa.ArrowException, OSError, KeyError, ValueError):
            return None


def _check_file(
    inside: Folder, name: str, one: ScoreSet, entry: ScoreShard, pairs: _Pairs | None, vocab_size: int
) -> Iterator[tuple[int | None, str | None, str]]:
    size = inside.size(entry.file)
    if size is None:
        yield None, None, f"is missing: restore it, or {_AGAIN}"
        return
    if size != entry.bytes:
        yield None, None, f"has {size:,} bytes instead of {entry.bytes:,}: restore it, or {_AGAIN}"
        return
    try:
        if inside.sha256(entry.file) != entry.sha256:
            yield None, None, f"is damaged, its sha256 differs: restore it, or remove it and {_AGAIN}"
            return
        with inside.parquet(entry.file) as file:
            wrong = list(_check_schema(file, name, one))
            yield from wrong
            if not wrong and pairs is not None:
                yield from _check_rows(file, one, pairs, vocab_size)
            if file.metadata.num_rows != entry.rows:
                yield None, None, f"holds {file.metadata.num_rows:,} rows, the ledger says {entry.rows:,}"
    except (CacheError, pa.ArrowException, OSError) as error:
        yield None, None, f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})"


def _check_schema(
    file: pq.ParquetFile, name: str, one: ScoreSet
) -> Iterator[tuple[int | None, str | None, str]]:
    """Yield where columns differ; descriptions and the order of columns are free."""
    found, wanted = file.schema_arrow, score_schema(name, one.columns)
    if len(set(found.names)) < len(found.names):
        yield None, None, "two columns have the same name"
        return
    for column in wanted.names:
        if column not in found.names:
            yield None, column, "the column is missing"
        elif not found.field(column).equals(wanted.field(column), check_metadata=False):
            there, due = found.field(column), wanted.field(column)
            nullable = " (nullable)" if there.nullable else ""
            yield None, column, f"is of type {there.type}{nullable} instead of {due.type}"
    for column in sorted(set(found.names) - set(wanted.names)):
        yield None, column, "is no column of these scores"
    metadata = file.metadata.metadata or {}
    for key, value in wanted.metadata.items():
        if metadata.get(key) != value:
            there = (metadata.get(key) or b"missing").decode(errors="replace")
            yield None, None, f"its metadata {key.decode()} is {there}, it should be {value.decode()}"


def _check_rows(
    file: pq.ParquetFile, one: ScoreSet, pairs: _Pairs, vocab_size: int
) -> Iterator[tuple[int | None, str | None, str]]:
    seen: set[str] = set()
    columns = {each: (n, c) for n, c in one.columns.items() for each in c.files_columns(n)}
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        ids, rows = table.column("pair_id").to_pylist(), table.column("row").to_numpy()
        known = np.array([each in pairs.place for each in ids], dtype=bool)
        for at, each in enumerate(ids):
            if not known[at]:
                yield int(rows[at]), "pair_id", f"{each} is no pair of the base's shard"
            elif each in seen:
                yield int(rows[at]), "pair_id", f"{each} is there more than once"
            elif rows[at] != pairs.row[pairs.place[each]]:
                yield int(rows[at]), "row", f"the base has {each} in row {pairs.row[pairs.place[each]]}"
            seen.add(each)
        places = np.array([pairs.place.get(each, 0) for each in ids], dtype=np.int64)
        for each, (name, column) in columns.items():
            tokens = pairs.tokens.get(each.partition("_")[0]) if column.per_token else None
            due = np.ones(len(ids), np.int64) if tokens is None else tokens[places]
            yield from _check_values(
                table.column(each).combine_chunks(), each, name, column, rows, known, due, vocab_size
            )
    if missing := pairs.place.keys() - seen:
        row = min(int(pairs.row[pairs.place[each]]) for each in missing)
        yield row, "pair_id", f"{len(missing):,} pairs of the shard are not there, first this one: {_AGAIN}"


def _check_values(
    array: pa.ListArray,
    each: str,
    name: str,
    column: ScoreColumn,
    rows: NDArray[np.int64],
    known: NDArray[np.bool_],
    due: NDArray[np.int64],
    vocab_size: int,
) -> Iterator[tuple[int | None, str | None, str]]:
    lengths = array.value_lengths().to_numpy().astype(np.int64)
    wanted = due * int(column.width or 1)
    for at in np.flatnonzero(known & (lengths != wanted)):
        yield int(rows[at]), each, f"has {lengths[at]} values instead of {wanted[at]}"
    values: Any = array.flatten().to_numpy(zero_copy_only=False)
    owner = np.repeat(rows, lengths)
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        yield from _first(owner, bad, each, "is not finite", values)
        if name.endswith("logp"):
            yield from _first(owner, ~bad & (values > _SLACK), each, "is no log-probability", values)
    elif name == "dist_ids":
        yield from _first(owner, values >= vocab_size, each, f"is not below {vocab_size}", values)


def _first(
    owner: NDArray[np.int64], bad: NDArray[np.bool_], column: str, what: str, values: Any
) -> Iterator[tuple[int | None, str | None, str]]:
    """Yield one finding for each row with bad values."""
    at = np.flatnonzero(bad)
    for row, first, count in zip(*np.unique(owner[at], return_index=True, return_counts=True), strict=True):
        more = f" (and {count - 1} more in this row)" if count > 1 else ""
        yield int(row), column, f"{values[at[first]]:.6g} {what}{more}"
