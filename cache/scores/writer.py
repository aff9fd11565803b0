"""Writing a score set beside a finished cache: file by file, durable and resumable like the base."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError
from ..manifest import identity_differences, plain_json, read_manifest, write_manifest
from ..schema import ROW_GROUP_ROWS, parquet_options
from ..storage.files import Folder
from ..storage.lock import lock_folder
from .sets import (
    PASS_SUFFIX,
    ScoreSet,
    ScoreShard,
    check_columns,
    check_name,
    file_name,
    is_score_file,
    score_schema,
    scores_folder,
    values_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from ..manifest import Manifest
    from ..pairs import Pair


class ScoreWriter:
    """The one writer of a score set: a context manager that holds the cache's lock.

    Opening a set that is there goes on with it where the request is the same. Whenever the process dies, the
    files finished so far are kept.

    Args:
        path: the cache's folder; its build must have ended.
        name: of the set.
        asked: its kind, identity, provenance and columns; no shards.
        overwrite: replace a set of another request.
        row_group_rows: pairs in each Parquet row group.

    Raises:
        CacheError: no finished cache there, another set of that name, a name that cannot be one, or another
            process is writing.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        asked: ScoreSet,
        *,
        overwrite: bool = False,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        check_name(name.removesuffix(PASS_SUFFIX))
        check_columns(asked.columns)
        self.name = name
        self._folder = Folder.at(path)
        self._inside = scores_folder(self._folder)
        self._row_group_rows = row_group_rows
        _check_base(self._folder, read_manifest(self._folder))
        self._lock: Any = lock_folder(self._folder)
        try:
            self.manifest = read_manifest(self._folder)
            self._base = {shard.index: shard for shard in self.manifest.shards if shard.file is not None}
            self.scores = self._open(asked, overwrite)
            self._inside.create()
            self._tidy()
        except BaseException:
            self.close()
            raise

    @property
    def waiting(self) -> list[int]:
        """Indices of the base's shards whose file is still to be written, ascending."""
        finished = {shard.index for shard in self.scores.shards}
        return sorted(self._base.keys() - finished)

    def write_shard(
        self, index: int, pairs: Sequence[Pair], values: Mapping[str, Sequence[Any]]
    ) -> ScoreShard:
        """Write the file beside shard `index` and enter it into the ledger.

        Args:
            index: which shard of the base.
            pairs: the shard's pairs, in its order.
            values: Parquet column (`chosen_NAME` and `rejected_NAME`, or `NAME` for a statistic of the pair)
                -> one array a pair, of the declared shape.

        Raises:
            CacheError: values of another shape than declared, or not finite, or a disk that cannot be written
                to. The files finished before are kept.

        """
        if self._lock is None:
            raise ValueError("the score writer is closed")
        if index not in self._base or len(pairs) != self._base[index].rows:
            raise ValueError(f"shard {index} of the base does not hold these {len(pairs)} pairs")
        arrays = self._checked(pairs, values)
        schema = score_schema(self.name, self.scores.columns)
        file = file_name(self.name, index)
        written = self._inside.replace(file, lambda out: self._write(out, schema, pairs, arrays))
        shard = ScoreShard(file, index, len(pairs), written.bytes, written.sha256)
        others = [other for other in self.scores.shards if other.index != index]
        self._lock.check()
        self.scores.shards = sorted([*others, shard], key=lambda entry: entry.index)
        write_manifest(self._folder, self.manifest)
        return shard

    def finish(self, drop: str | None = None) -> None:
        """Mark the set complete; `drop` names a set that is no longer needed.

        Raises:
            CacheError: files are missing, or the disk cannot be written to.

        """
        if self.waiting:
            raise CacheError(
                f"the scores {self.name} of {self._folder.location} lack {len(self.waiting)} of "
                f"{len(self._base)} shards: run the same tdpo cache add command again"
            )
        self._lock.check()
        self.scores.complete = True
        if drop is not None:
            self.manifest.scores.pop(drop, None)
        write_manifest(self._folder, self.manifest)
        self._tidy()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, asked: ScoreSet, overwrite: bool) -> ScoreSet:
        """Return the set to go on with: what is there of this request, or a new one; enter it."""
        there = self.manifest.scores.get(self.name)
        for other in self.manifest.scores:
            # Where letters' case does not count, their files would be the same.
            if other != self.name and other.lower() == self.name.lower():
                raise CacheError(f"--name {self.name}: the cache has scores {other}; choose another name")
        fresh = ScoreSet(asked.kind, plain_json(asked.identity), plain_json(asked.provenance), asked.columns)
        if there is not None and not overwrite:
            if differences := identity_differences(_request(there), _request(fresh)):
                raise CacheError(
                    f"{self._folder.location} holds other scores under the name {self.name}: "
                    f"{'; '.join(differences)}. Choose another --name, or replace them with --overwrite"
                )
            kept = [shard for shard in there.shards if self._is_there(shard)]
            if len(kept) < len(self._base) and kept != there.shards:
                there.provenance.setdefault("resumed", []).append(fresh.provenance)
            there.shards = kept
            there.complete = there.complete and len(kept) == len(self._base)
            fresh = there
        self.manifest.scores[self.name] = fresh
        if overwrite and there is not None:
            # Before the old files go, so that no instant has a manifest of files that are gone.
            write_manifest(self._folder, self.manifest)
        return fresh

    def _is_there(self, shard: ScoreShard) -> bool:
        base = self._base.get(shard.index)
        return base is not None and base.rows == shard.rows and self._inside.size(shard.file) == shard.bytes

    def _tidy(self) -> None:
        """Remove score files that no set's ledger names: temporaries, orphans, dropped sets."""
        keep = {shard.file for one in self.manifest.scores.values() for shard in one.shards}
        for file in self._inside.names():
            if is_score_file(file) and file not in keep:
                self._inside.remove(file)

    def _checked(self, pairs: Sequence[Pair], values: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return the values in their columns' types; the first ones settle the widths still to come."""
        columns = self.scores.columns
        wanted = {each: name for name, column in columns.items() for each in column.files_columns(name)}
        if values.keys() != wanted.keys() or any(len(each) != len(pairs) for each in values.values()):
            raise CacheError(
                f"scores {self.name}: one value a pair is due for each of {', '.join(wanted)}; got "
                + (", ".join(f"{len(each)} of {name}" for name, each in values.items()) or "none")
            )
        arrays: dict[str, list[Any]] = {each: [] for each in wanted}
        widths = {name: column.width for name, column in columns.items()}
        for each, name in wanted.items():
            column = columns[name]
            for pair, value in zip(pairs, values[each], strict=True):
                try:
                    array = values_of(value, column)
                    _check_shape(array, column.per_token, _tokens(pair, each), widths, name)
                except (TypeError, ValueError) as error:
                    raise CacheError(
                        f"scores {self.name}: row {pair.row}: {each} {error}: look at the model or the "
                        "statistic that computes it"
                    ) from error
                arrays[each].append(array)
        if pairs:
            self.scores.columns = self.scores.with_widths({name: int(w or 1) for name, w in widths.items()})
        return arrays

    def _write(
        self, out: IO[bytes], schema: pa.Schema, pairs: Sequence[Pair], arrays: Mapping[str, list[Any]]
    ) -> None:
        # Not a `with` block: where the disk is full, closing would fail again and hide the first error.
        writer = pq.ParquetWriter(out, schema, **parquet_options(schema))
        for start in range(0, len(pairs), self._row_group_rows):
            rows = slice(start, start + self._row_group_rows)
            columns = [
                pa.array([pair.pair_id for pair in pairs[rows]], pa.string()),
                pa.array([pair.row for pair in pairs[rows]], pa.int64()),
                *(_list_array(arrays[name][rows], schema.field(name).type) for name in schema.names[2:]),
            ]
            writer.write_table(
                pa.Table.from_arrays(columns, schema=schema), row_group_size=self._row_group_rows
            )
        writer.close()


def _check_base(folder: Folder, manifest: Manifest) -> None:
    if manifest.part is not None:
        raise CacheError(
            f"{folder.location} is part {manifest.part} of a cache: merge the parts first (tdpo cache merge)"
        )
    if not manifest.complete:
        raise CacheError(
            f"the build of {folder.location} has not ended: run its build command again, then add to it"
        )


def _request(one: ScoreSet) -> dict[str, Any]:
    """Return all that two runs must agree on for one to go on with the other."""
    columns = {name: {"shape": each.shape, "dtype": each.dtype} for name, each in one.columns.items()}
    return {"kind": one.kind, **one.identity, "columns": columns}


def _tokens(pair: Pair, column: str) -> int:
    return len(pair.rejected_ids if column.startswith("rejected_") else pair.chosen_ids)


def _check_shape(array: Any, per_token: bool, tokens: int, widths: dict[str, int | None], name: str) -> None:
    if per_token and len(array) != tokens:
        raise ValueError(f"has values for {len(array)} of {tokens} tokens")
    width = 1 if per_token and array.ndim == 1 else array.shape[-1]
    if width < 1:
        raise ValueError("has no values")
    if widths[name] is None:
        widths[name] = width
    if width != widths[name]:
        raise ValueError(f"has {width} values where others have {widths[name]}")


def _list_array(parts: Sequence[Any], kind: pa.ListType) -> pa.ListArray:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([part.size for part in parts], out=offsets[1:])
    values = np.concatenate([part.ravel() for part in parts])
    stored = values.astype(kind.value_type.to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(stored), type=kind)
