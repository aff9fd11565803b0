"""Writing a cache: shard by shard, each durable before the next, resumable after any interruption."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .card import CARD_NAME, dataset_card
from .encode import check_scored, write_pairs
from .errors import CacheError
from .files import Folder, Written, write_all
from .layout import is_ours, refuse_foreign, refuse_other, shard_name
from .lock import LOCK_NAME, BuilderLock
from .manifest import (
    FIRST_ROWS,
    MANIFEST_NAME,
    Manifest,
    Shard,
    Skipped,
    plain_json,
    read_manifest,
    write_manifest,
)
from .pairs import completion_tokens
from .schema import ROW_GROUP_ROWS, CachedStatistics

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from .pairs import ScoredPair


class CacheWriter:
    """The one builder of a cache folder: a context manager that holds the folder's lock.

    Opening a folder that holds an unfinished or finished cache of the same identity resumes it. Whenever
    the process dies, the folder is a valid cache of the shards finished so far.

    Args:
        path: the cache's folder; made, with its parents, where missing.
        identity: what is scored: reference, tokenizer, data, limits, and `statistics` (see
            `CachedStatistics`). Never a training setting: it decides whether the cache can be used.
        provenance: how it is scored: versions, date, command. Recorded, never compared.
        source_rows: rows of the source data, kept or not.
        shard_rows: source rows in each shard; shard i covers rows i * shard_rows and on.
        overwrite: remove a cache that is there first. Only files that are a cache's own are removed.
        row_group_rows: pairs in each Parquet row group, the unit of reading.

    Raises:
        CacheError: the folder holds another cache or other files, is being written by another process, or
            cannot be written to. A folder that was not there is not there afterwards.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        provenance: Mapping[str, Any],
        *,
        source_rows: int,
        shard_rows: int,
        overwrite: bool = False,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        if source_rows < 0 or shard_rows < 1 or row_group_rows < 1:
            raise ValueError("source_rows must be at least 0, shard_rows and row_group_rows at least 1")
        asked = Manifest(plain_json(identity), plain_json(provenance), source_rows, shard_rows)
        self._statistics = CachedStatistics.of(asked.identity)
        self._row_group_rows = row_group_rows
        self._folder = Folder.at(path)
        self._lock: BuilderLock | None = None
        refuse_foreign(self._folder, overwrite)
        self._made = self._folder.create()
        self._fresh = True
        try:
            self._lock = BuilderLock(self._folder)
            self.manifest = self._open(asked, overwrite)
        except BaseException:
            self._withdraw()
            raise

    @property
    def path(self) -> Path:
        """The cache's folder."""
        return self._folder.path

    @property
    def shards(self) -> int:
        """Number of shards of the finished cache."""
        return self.manifest.shard_count

    @property
    def finished(self) -> set[int]:
        """Indices of the shards that are in the ledger and whose files are there, whole."""
        return {shard.index for shard in self.manifest.shards if self._is_there(shard)}

    def source_rows(self, index: int) -> range:
        """Rows of the source data that a shard covers.

        Raises:
            IndexError: there is no such shard.

        """
        if not 0 <= index < self.shards:
            raise IndexError(f"shard {index} of a cache of {self.shards}")
        start = index * self.manifest.shard_rows
        return range(start, min(start + self.manifest.shard_rows, self.manifest.source_rows))

    def write_shard(
        self, index: int, scored: Sequence[ScoredPair], skipped: Mapping[str, Sequence[int]]
    ) -> Shard:
        """Write a shard's pairs, in source order whatever order they come in, and enter it into the ledger.

        Args:
            index: which shard; one that is already finished is replaced.
            scored: the pairs kept of its source rows.
            skipped: reason -> the rows left out. Every source row is either kept or skipped, once.

        Raises:
            ValueError: rows missing, repeated or of another shard; other statistics than the cache's.
            CacheError: values that are not finite, or a disk that cannot be written to. The shards finished
                before are kept.

        """
        if self._lock is None:
            raise ValueError("the cache writer is closed")
        span = self.source_rows(index)
        _check_rows(index, span, [one.pair.row for one in scored], skipped)
        for one in scored:
            check_scored(one, self._statistics)
        ordered = sorted(scored, key=lambda one: one.pair.row)
        written, name = Written(0, ""), None
        if ordered:
            name = shard_name(index)
            written = self._folder.replace(
                name,
                lambda file: write_pairs(
                    file, ordered, self._statistics, row_group_rows=self._row_group_rows
                ),
            )
        shard = Shard(
            file=name,
            index=index,
            source_rows=(span.start, span.stop),
            rows=len(ordered),
            prompt_tokens=sum(len(one.pair.prompt_ids) for one in ordered),
            completion_tokens=completion_tokens(ordered),
            bytes=written.bytes,
            sha256=written.sha256,
            skipped={
                reason: Skipped(len(rows), tuple(sorted(rows)[:FIRST_ROWS]))
                for reason, rows in sorted(skipped.items())
                if rows
            },
        )
        self._enter(shard)
        return shard

    def finish(self) -> None:
        """Mark the cache complete and write its README.md.

        Raises:
            CacheError: shards are missing, or the disk cannot be written to.

        """
        missing = sorted(set(range(self.shards)) - self.finished)
        if missing:
            raise CacheError(
                f"{self.path} lacks {len(missing)} of {self.shards} shards (the first is {missing[0]}): "
                "run the same build command again"
            )
        if self.manifest.complete:
            return
        card = dataset_card(self.manifest).encode()
        self._folder.replace(CARD_NAME, lambda file: write_all(file, card))
        self.manifest.complete = True
        write_manifest(self._folder, self.manifest)

    def close(self) -> None:
        """Release the lock. A cache that was begun here and got no shard leaves nothing behind."""
        if self._lock is None:
            return
        if self._fresh and not self.manifest.shards and not self.manifest.complete:
            with suppress(CacheError):
                self._folder.remove(MANIFEST_NAME)
            self._withdraw()
        else:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, asked: Manifest, overwrite: bool) -> Manifest:
        """Decide between a new cache, a resumed one and a refusal; return the manifest to go on with."""
        there = self._folder.size(MANIFEST_NAME) is not None
        manifest = asked
        if there and not overwrite:
            manifest = read_manifest(self._folder)
            refuse_other(self.path, manifest, asked)
            self._fresh = False
            kept = [shard for shard in manifest.shards if self._is_there(shard)]
            if len(kept) < manifest.shard_count:
                manifest.complete = False
                # Written by two builders: a reader of the provenance must see both.
                manifest.provenance.setdefault("resumed", []).append(asked.provenance)
            manifest.shards = kept
        self._tidy(manifest, keep_manifest=there and not overwrite)
        if not manifest.complete:
            write_manifest(self._folder, manifest)
        return manifest

    def _tidy(self, manifest: Manifest, *, keep_manifest: bool) -> None:
        """Remove our own files that the manifest does not know: temporaries, orphans, an old cache.

        The manifest goes first, so that no instant has a manifest of shards that are gone.
        """
        keep = {LOCK_NAME, *(shard.file for shard in manifest.shards)}
        keep |= {MANIFEST_NAME} if keep_manifest else set()
        keep |= {CARD_NAME} if manifest.complete else set()
        names = [name for name in self._folder.names() if is_ours(name) and name not in keep]
        for name in sorted(names, key=lambda name: name != MANIFEST_NAME):
            self._folder.remove(name)

    def _enter(self, shard: Shard) -> None:
        others = [other for other in self.manifest.shards if other.index != shard.index]
        self.manifest.shards = sorted([*others, shard], key=lambda entry: entry.index)
        write_manifest(self._folder, self.manifest)

    def _is_there(self, shard: Shard) -> bool:
        return shard.file is None or self._folder.size(shard.file) == shard.bytes

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _withdraw(self) -> None:
        """Release the lock and remove the folders that this writer made, as far as they are empty."""
        self._release()
        with suppress(OSError):
            for path in self._made:
                path.rmdir()


def _check_rows(index: int, span: range, kept: Sequence[int], skipped: Mapping[str, Sequence[int]]) -> None:
    rows = sorted([*kept, *(row for rows in skipped.values() for row in rows)])
    if rows != list(span):
        wrong = sorted(set(rows) ^ set(span)) or [row for row, after in pairwise(rows) if row == after]
        raise ValueError(
            f"shard {index} covers rows {span.start} up to {span.stop}, each kept or skipped once; "
            f"row {wrong[0]} is not"
        )
