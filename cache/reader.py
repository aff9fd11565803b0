"""Reading a cache: random access by row, row group by row group, with bounded memory."""

from __future__ import annotations

import operator
import threading
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .decode import DamagedShardError, RowGroup, columns_of
from .errors import CacheError
from .manifest import read_manifest
from .schema import STATISTICS, CachedStatistics, Statistic
from .storage.files import Folder

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Sequence

    from .pairs import ScoredPair

OPEN_FILES = 16


def open_cache(
    path: str | os.PathLike[str],
    *,
    statistics: Collection[str] | None = None,
    cached_groups: int = 68,
    allow_incomplete: bool = False,
) -> CacheReader:
    """Open a cache for reading.

    Args:
        path: the cache's folder.
        statistics: what to read of `ref_logp`, `ref_entropy`, `dist` and `ref_hidden`; None reads all that is
            there. The rest comes back as None and costs nothing. `ref_logp` is always read.
        cached_groups: decoded row groups kept in memory. To read in `epoch_order`, a few more than its
            `pool_groups`, so that a batch across two pools loads nothing twice.
        allow_incomplete: open the finished shards of a build that has not ended.

    Raises:
        CacheError: no cache there, an unfinished or damaged one, or one without a statistic asked for.

    """
    return CacheReader(
        path, statistics=statistics, cached_groups=cached_groups, allow_incomplete=allow_incomplete
    )


class CacheReader:
    """The pairs of a cache as a sequence of `ScoredPair`, numbered over all shards in order.

    Arrays of the pairs are read-only views into decoded row groups. A reader can be pickled, for data-loader
    workers: the copy opens the files for itself. Threads may share one. See `open_cache` for the arguments.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        statistics: Collection[str] | None = None,
        cached_groups: int = 68,
        allow_incomplete: bool = False,
    ) -> None:
        if cached_groups < 1:
            raise ValueError(f"cached_groups must be at least 1, not {cached_groups}")
        self._folder = Folder.at(path)
        self.manifest = read_manifest(self._folder)
        self._cached_groups = cached_groups
        self._check_complete(allow_incomplete)
        self.cached = CachedStatistics.of(self.manifest.identity, self.location)
        self._wanted = self._checked(statistics)
        self._shards = [shard for shard in self.manifest.shards if shard.file is not None]
        # Asked for with every row; the manifest would add up its shards each time.
        self._length = self.manifest.rows
        self._check_files()
        self._index: tuple[list[int], list[tuple[int, int]]] | None = None
        self._start()

    @property
    def location(self) -> str:
        """The cache's folder: its path or URL, as given."""
        return self._folder.location

    @property
    def identity(self) -> dict[str, Any]:
        """What was scored: the manifest's identity."""
        return self.manifest.identity

    @property
    def statistics(self) -> frozenset[Statistic]:
        """Names of the statistics that the cache holds, whether this reader reads them or not."""
        return self.cached.names

    @property
    def head(self) -> int:
        """k: most probable tokens cached at each position."""
        return self.cached.head

    @property
    def tail(self) -> int:
        """m: draws from the rest of the distribution cached at each position."""
        return self.cached.tail

    @property
    def vocab_size(self) -> int:
        """V: width of the reference's logits."""
        return self.cached.vocab_size

    @property
    def completion_tokens(self) -> int:
        """Completion tokens, of both sides, in the cache."""
        return self.manifest.completion_tokens

    @property
    def group_sizes(self) -> list[int]:
        """Rows of each row group over all shards, in row order: what `epoch_order` takes."""
        starts, _ = self._groups()
        return [stop - start for start, stop in pairwise(starts)]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> ScoredPair:
        return self.read([index])[0]

    def __iter__(self) -> Iterator[ScoredPair]:
        return self.iter()

    def read(
        self, indices: Sequence[int] | np.ndarray, *, statistics: Collection[str] | None = None
    ) -> list[ScoredPair]:
        """Return the pairs at these row numbers, in the order asked for; negative ones count from the end.

        Each row group is decoded at most once a call, so asking for rows that lie close together is cheap.

        Args:
            indices: row numbers, [B].
            statistics: what to read, None for what the reader was opened with.

        Raises:
            IndexError: no such row.
            CacheError: a file is missing, changed or damaged.

        """
        wanted = self._wanted if statistics is None else self._checked(statistics)
        starts, _ = self._groups()
        rows = [self._row(index) for index in indices]
        places = [bisect_right(starts, row) - 1 for row in rows]
        found: dict[int, ScoredPair] = {}
        for group, place in sorted(zip(places, range(len(rows)), strict=True)):
            found[place] = self._group(group, wanted)[rows[place] - starts[group]]
        return [found[place] for place in range(len(rows))]

    def iter(self, *, statistics: Collection[str] | None = None) -> Iterator[ScoredPair]:
        """Go through all pairs in order, holding one row group at a time, outside the cached ones."""
        wanted = self._wanted if statistics is None else self._checked(statistics)
        for group, size in enumerate(self.group_sizes):
            decoded = self._load(group, wanted)
            for row in range(size):
                yield decoded[row]

    def pair_ids(self) -> list[str]:
        """Return the ids of all pairs in order of row; reads that column only.

        Raises:
            CacheError: a file is missing, changed or damaged.

        """
        found: list[str] = []
        for at in range(len(self._shards)):
            with self._guard:
                try:
                    column = self._file(at).read(columns=["pair_id"], use_threads=False).column(0)
                except (pa.ArrowException, OSError, IndexError) as error:
                    raise self._damaged(at, (str(error) or type(error).__name__).splitlines()[0]) from error
            found += column.to_pylist()
        return found

    def close(self) -> None:
        """Close the files and drop what is decoded; reading again opens them again."""
        with self._guard:
            self._decoded.clear()
            self._close_files()

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_guard", "_decoded", "_files")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._guard = threading.RLock()
        self._decoded: OrderedDict[tuple[int, frozenset[Statistic]], RowGroup] = OrderedDict()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def _check_complete(self, allow_incomplete: bool) -> None:
        if not self.manifest.complete and not allow_incomplete:
            done, total = len(self.manifest.shards), self.manifest.expected_count
            raise CacheError(
                f"the build of {self.location} has not ended, {done} of {total} shards are finished: "
                "run the same build command again to go on with it"
            )

    def _check_files(self) -> None:
        sizes = self._folder.sizes()
        for shard in self._shards:
            size = sizes.get(str(shard.file))
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                raise CacheError(
                    f"{self._folder.locate(str(shard.file))} {found}: restore it, or run the same build "
                    "command again, which scores only that shard"
                )
        for name in sorted(self.cached.files):
            recorded = self.manifest.files.get(name)
            if recorded is None or sizes.get(name) != recorded.bytes:
                raise CacheError(
                    f"{self._folder.locate(name)} is missing or not whole: restore it, or run the same build "
                    "command again, which writes it again and keeps the shards"
                )

    def _checked(self, statistics: Collection[str] | None) -> frozenset[Statistic]:
        """Return the statistics to read, which the cache must hold."""
        if statistics is None:
            return self.cached.names
        unknown = sorted(set(statistics) - set(STATISTICS))
        if unknown:
            raise ValueError(f"unknown statistic {unknown[0]!r}: a cache holds {', '.join(STATISTICS)}")
        missing = sorted(set(statistics) - self.cached.names)
        if missing:
            raise CacheError(
                f"{self.location} was built without {', '.join(missing)}: build a cache that holds it"
            )
        return frozenset(name for name in STATISTICS if name in statistics or name == "ref_logp")

    def _row(self, index: int | np.integer[Any]) -> int:
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {self.location}, which has {len(self)}")
        return row % len(self)

    def _groups(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the first row of each row group, and the number of rows at the end; then where each lies.

        Read from the footers on first use.
        """
        with self._guard:
            if self._index is None:
                starts, places = [0], []
                for at, (shard, footer) in enumerate(zip(self._shards, self._footers(), strict=True)):
                    if footer.num_rows != shard.rows:
                        raise self._damaged(at, f"{footer.num_rows} rows instead of {shard.rows}")
                    for group in range(footer.num_row_groups):
                        places.append((at, group))
                        starts.append(starts[-1] + footer.row_group(group).num_rows)
                self._index = starts, places
            return self._index

    def _footers(self) -> list[pq.FileMetaData]:
        """Return each shard's footer; where every one is a request of its own, several are read at once."""
        shards = range(len(self._shards))
        if not self._folder.read_ahead:
            return [self._file(at).metadata for at in shards]

        def footer(at: int) -> pq.FileMetaData:
            with self._opened(at) as file:
                return file.metadata

        with ThreadPoolExecutor(OPEN_FILES, thread_name_prefix="tdpo-footers") as threads:
            return list(threads.map(footer, shards))

    def _group(self, group: int, wanted: frozenset[Statistic]) -> RowGroup:
        """Return a decoded row group, from memory where it was used lately."""
        key = group, wanted
        with self._guard:
            decoded = self._decoded.get(key)
            if decoded is None:
                decoded = self._decoded[key] = self._load(group, wanted)
                while len(self._decoded) > self._cached_groups:
                    self._decoded.popitem(last=False)
            self._decoded.move_to_end(key)
            return decoded

    def _load(self, group: int, wanted: frozenset[Statistic]) -> RowGroup:
        _, places = self._groups()
        at, inside = places[group]
        with self._guard:
            try:
                columns = columns_of(wanted)
                # One thread: a training job has a worker for each core it wants to spend on reading.
                table = self._file(at).read_row_group(inside, columns=columns, use_threads=False)
                if missing := sorted(set(columns) - set(table.column_names)):
                    raise DamagedShardError(f"it has no column {missing[0]}")
                return RowGroup(table, self.cached)
            except (pa.ArrowException, OSError, DamagedShardError) as error:
                raise self._damaged(at, (str(error) or type(error).__name__).splitlines()[0]) from error

    def _file(self, at: int) -> pq.ParquetFile:
        """Return an open shard; only a few stay open."""
        with self._guard:
            if at not in self._files:
                self._files[at] = self._opened(at)
                while len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)[1].close(force=True)
            self._files.move_to_end(at)
            return self._files[at]

    def _opened(self, at: int) -> pq.ParquetFile:
        try:
            return self._folder.parquet(str(self._shards[at].file))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(at, (str(error) or "unreadable").splitlines()[0]) from error

    def _close_files(self) -> None:
        while self._files:
            self._files.popitem()[1].close(force=True)

    def _damaged(self, at: int, what: str) -> CacheError:
        name = str(self._shards[at].file)
        return CacheError(
            f"{self._folder.locate(name)} is damaged ({what}): remove it and run the same build command "
            "again, which scores only that shard"
        )
