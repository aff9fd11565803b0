"""Reading a score set: the values of some pairs, found by `pair_id`, row group by row group."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..errors import CacheError
from ..manifest import read_manifest
from ..storage.files import Folder
from .sets import scores_folder, sets_in_use

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    import pyarrow.parquet as pq

    from ..manifest import Manifest
    from ..pairs import Pair
    from .sets import ScoreColumn, ScoreSet

OPEN_FILES = 16
# Files whose ids are kept: some 100 kB each.
INDEXED_FILES = 256


def open_scores(
    path: str | os.PathLike[str],
    name: str,
    *,
    columns: Collection[str] | None = None,
    cached_groups: int = 68,
) -> ScoreReader:
    """Open a score set of a cache for reading.

    Args:
        path: the cache's folder.
        name: of the set; `tdpo cache info` lists them.
        columns: statistics to read; None reads all.
        cached_groups: decoded row groups kept in memory.

    Raises:
        CacheError: no such set, an unfinished or damaged one, or one that does not cover the cache's pairs.

    """
    return ScoreReader(path, name, columns=columns, cached_groups=cached_groups)


class ScoreReader:
    """The values of a score set, by pair. Can be pickled and shared by threads. See `open_scores`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        columns: Collection[str] | None = None,
        cached_groups: int = 68,
        allow_incomplete: bool = False,
    ) -> None:
        self._folder = Folder.at(path)
        self._inside = scores_folder(self._folder)
        self.name = name
        manifest = read_manifest(self._folder)
        self.scores = _find(self._folder, manifest, name)
        self._shard_rows = manifest.shard_rows
        self._cached_groups = cached_groups
        self.columns = self._wanted(columns)
        if not allow_incomplete:
            self._check_cover(manifest)
        self._files = {shard.index: shard.file for shard in self.scores.shards}
        self._check_files()
        self._start()

    def read(self, pairs: Sequence[Pair]) -> dict[str, list[Any]]:
        """Return Parquet column -> the values of these pairs, in their order.

        A value is a read-only view: [T] of shape `token`, [T, width] of `entries`, [width] of the others.

        Raises:
            CacheError: a pair is not in the set, or a file is missing, changed or damaged.

        """
        places = [self._place(pair) for pair in pairs]
        names = [each for name, column in self.columns.items() for each in column.files_columns(name)]
        found: dict[str, list[Any]] = {name: [None] * len(pairs) for name in names}
        for at in sorted(range(len(pairs)), key=places.__getitem__):
            index, group, row = places[at]
            decoded = self._group(index, group)
            for name in names:
                values = decoded[name][row]
                if len(values) != self._length(name, pairs[at]):
                    raise self._damaged(
                        index, f"row {pairs[at].row}: {name} has {len(values)} values for the pair's tokens"
                    )
                found[name][at] = values
        return found

    def close(self) -> None:
        """Close the files and drop what is decoded; reading again opens them again."""
        with self._guard:
            self._groups.clear()
            while self._open:
                self._open.popitem()[1].close(force=True)

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_guard", "_groups", "_open", "_ids")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._guard = threading.RLock()
        self._groups: OrderedDict[tuple[int, int], dict[str, list[Any]]] = OrderedDict()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._ids: OrderedDict[int, tuple[dict[str, int], list[int]]] = OrderedDict()

    def _wanted(self, columns: Collection[str] | None) -> dict[str, ScoreColumn]:
        missing = sorted(set(columns or ()) - self.scores.columns.keys())
        if missing:
            raise CacheError(
                f"the scores {self.name} of {self._folder.location} have no {missing[0]}; they have "
                f"{', '.join(self.scores.columns)}"
            )
        return {n: c for n, c in self.scores.columns.items() if columns is None or n in columns}

    def _check_cover(self, manifest: Manifest) -> None:
        """Refuse a set that lacks pairs of the base."""
        have = {shard.index: shard.rows for shard in self.scores.shards}
        lacking = [s.rows for s in manifest.shards if s.rows and have.get(s.index) != s.rows]
        if lacking or not self.scores.complete:
            covered = sum(shard.rows for shard in manifest.shards) - sum(lacking)
            raise CacheError(
                f"the scores {self.name} of {self._folder.location} cover {covered:,} of {manifest.rows:,} "
                "pairs: run the tdpo cache add command that makes them again"
            )

    def _check_files(self) -> None:
        there = self._inside.sizes()
        for shard in self.scores.shards:
            size = there.get(shard.file)
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                raise CacheError(
                    f"{self._inside.locate(shard.file)} {found}: restore it, or run the same tdpo cache add "
                    "command again, which computes only that file"
                )

    def _length(self, name: str, pair: Pair) -> int:
        side, _, statistic = name.partition("_")
        column = self.columns.get(name) or self.columns[statistic]
        if not column.per_token:
            return int(column.width or 1)
        return len(pair.chosen_ids if side == "chosen" else pair.rejected_ids)

    def _place(self, pair: Pair) -> tuple[int, int, int]:
        """Return file, row group and row in it of a pair."""
        index = pair.row // self._shard_rows
        ids, starts = self._index(index, pair)
        at = ids.get(pair.pair_id)
        if at is None:
            raise CacheError(
                f"the scores {self.name} of {self._folder.location} have no row for the pair of row "
                f"{pair.row}: they were made for another cache, add them again with --overwrite"
            )
        group = bisect_right(starts, at) - 1
        return index, group, at - starts[group]

    def _index(self, index: int, pair: Pair) -> tuple[dict[str, int], list[int]]:
        """Return the places of a file's ids, and the first row of each of its row groups."""
        with self._guard:
            if index not in self._ids:
                if index not in self._files:
                    raise CacheError(
                        f"the scores {self.name} of {self._folder.location} do not cover row {pair.row}: run "
                        "the tdpo cache add command that makes them again"
                    )
                try:
                    file = self._file(index)
                    ids = file.read(columns=["pair_id"], use_threads=False).column(0).to_pylist()
                    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
                except (pa.ArrowException, OSError, KeyError, IndexError) as error:
                    raise self._damaged(index, str(error)) from error
                self._ids[index] = dict(zip(ids, range(len(ids)), strict=True)), [0, *accumulate(sizes)][:-1]
                while len(self._ids) > INDEXED_FILES:
                    self._ids.popitem(last=False)
            self._ids.move_to_end(index)
            return self._ids[index]

    def _group(self, index: int, group: int) -> dict[str, list[Any]]:
        """Return a decoded row group, from memory where it was used lately: column -> a value a row."""
        with self._guard:
            key = index, group
            if key not in self._groups:
                self._groups[key] = self._load(index, group)
                while len(self._groups) > self._cached_groups:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

    def _load(self, index: int, group: int) -> dict[str, list[Any]]:
        names = {each: c for name, c in self.columns.items() for each in c.files_columns(name)}
        try:
            table = self._file(index).read_row_group(group, columns=list(names), use_threads=False)
            return {name: _split(table.column(name), column) for name, column in names.items()}
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise self._damaged(index, str(error)) from error

    def _file(self, index: int) -> pq.ParquetFile:
        """Return an open file; only a few stay open."""
        with self._guard:
            if index not in self._open:
                try:
                    self._open[index] = self._inside.parquet(self._files[index])
                except (pa.ArrowException, OSError) as error:
                    raise self._damaged(index, str(error)) from error
                while len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)[1].close(force=True)
            self._open.move_to_end(index)
            return self._open[index]

    def _damaged(self, index: int, what: str) -> CacheError:
        what = (what or "unreadable").splitlines()[0]
        return CacheError(
            f"{self._inside.locate(self._files[index])} is damaged ({what}): "
            "remove it and run the same tdpo cache add command again, which computes only that file"
        )


def _find(folder: Folder, manifest: Manifest, name: str) -> ScoreSet:
    if name not in manifest.scores:
        there = ", ".join(known for known, _ in sets_in_use(manifest.scores)) or "none"
        raise CacheError(
            f"{folder.location} has no scores {name} (it has: {there}): add them with tdpo cache add"
        )
    return manifest.scores[name]


def _split(column: pa.ChunkedArray, declared: ScoreColumn) -> list[Any]:
    """View a list column as one array a row; raise ValueError where it holds nulls or another width."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count or array.values.null_count:
        raise ValueError("it holds nulls")
    offsets = np.asarray(array.offsets)
    values = array.values.to_numpy(zero_copy_only=True)
    if values.dtype != declared.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            values = values.astype(declared.dtype)
        values.flags.writeable = False
    width = int(declared.width or 1)
    if declared.shape == "entries":
        if len(values) % width or (offsets % width).any():
            raise ValueError(f"it does not hold {width} entries for each token")
        offsets, values = offsets // width, values.reshape(-1, width)
    stops = offsets.tolist()
    return [values[start:stop] for start, stop in pairwise(stops)]
