"""Writing a cache: shard by shard, each durable before the next, resumable after any interruption."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from .card import CARD_NAME, dataset_card
from .errors import CacheError
from .layout import ENTRY, OPTIONS_NAME, entry_name, is_ours, refuse_foreign, refuse_other
from .ledger import Part, Shard
from .manifest import MANIFEST_NAME, Manifest, plain_json, read_manifest, write_manifest
from .schema import ROW_GROUP_ROWS, CachedStatistics
from .scores.sets import clear_scores
from .shard import ShardWriter, left_entries, source_rows
from .storage.files import Folder, Written, copy_checked, write_all
from .storage.lease import LEASE_SECONDS
from .storage.lock import LOCK_NAME, Lock, lock_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import IO

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
        part: build only the shards of this part of the cache; None builds all.
        overwrite: remove a cache that is there first. Only files that are a cache's own are removed.
        row_group_rows: pairs in each Parquet row group, the unit of reading.
        lease_seconds: how often a remote folder's lease is changed; see `Lease`.

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
        part: Part | None = None,
        overwrite: bool = False,
        row_group_rows: int = ROW_GROUP_ROWS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        if source_rows < 0 or shard_rows < 1 or row_group_rows < 1:
            raise ValueError("source_rows must be at least 0, shard_rows and row_group_rows at least 1")
        asked = Manifest(plain_json(identity), plain_json(provenance), source_rows, shard_rows, part=part)
        CachedStatistics.of(asked.identity)
        self._folder = Folder.at(path)
        self._shards = ShardWriter(self._folder, asked, row_group_rows)
        self._ledger = threading.Lock()
        self._lock: Lock | None = None
        refuse_foreign(self._folder, overwrite)
        self._made = self._folder.create()
        self._fresh = True
        try:
            self._lock = lock_folder(self._folder, lease_seconds)
            self.manifest = self._open(asked, overwrite)
        except BaseException:
            self._withdraw()
            raise

    @property
    def location(self) -> str:
        """The cache's folder, as given."""
        return self._folder.location

    @property
    def shards(self) -> int:
        """Number of shards of the finished cache, of all its parts."""
        return self.manifest.shard_count

    @property
    def waiting(self) -> list[int]:
        """Indices of the shards that are still to be written, ascending."""
        finished = self.finished
        return [index for index in self.manifest.expected if index not in finished]

    @property
    def finished(self) -> set[int]:
        """Indices of the shards that are in the ledger and whose files are there, whole."""
        sizes = self._folder.sizes()
        return {shard.index for shard in self.manifest.shards if _is_there(shard, sizes)}

    def source_rows(self, index: int) -> range:
        """Rows of the source data that a shard covers.

        Raises:
            IndexError: there is no such shard.

        """
        if index not in self.manifest.expected:
            raise IndexError(f"shard {index} of a cache of {self.shards}")
        return source_rows(self.manifest, index)

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
        self._hold()
        self.source_rows(index)
        shard = self._shards.write_file(index, scored, skipped)
        self._enter(shard)
        return shard

    def enter(self, shard: Shard) -> None:
        """Enter a shard whose file is written, by a `ShardWriter` of this folder, into the ledger.

        Its entry file is removed then. Threads may call this and `write_shard` at the same time.

        Raises:
            CacheError: the disk cannot be written to.

        """
        self._enter(shard)
        self._folder.remove(entry_name(shard.index))

    def copy_shard(self, source: Folder, shard: Shard) -> None:
        """Take over a shard that another folder's ledger has, checked while it is copied.

        Raises:
            CacheError: its file is not what the ledger says, or a disk refuses.

        """
        self._hold()
        self.source_rows(shard.index)
        if shard.file is not None:
            expected = Written(shard.bytes, shard.sha256)
            self._folder.replace(
                shard.file, lambda file: copy_checked(source, str(shard.file), expected, file)
            )
        self._enter(shard)

    def copy_file(self, source: Folder, name: str, expected: Written) -> None:
        """Take over a file that another folder's manifest has beside the shards; as `copy_shard`."""
        self.write_file(name, lambda file: copy_checked(source, name, expected, file))

    def write_options(self, text: str) -> None:
        """Write the builder's resolved options beside the shards, for people to read."""
        self._hold()
        self._folder.replace(OPTIONS_NAME, lambda file: write_all(file, text.encode()))

    @property
    def lacking_files(self) -> list[str]:
        """Names of the files beside the shards that the statistics need and that are not there, whole."""
        files = self.manifest.files
        return [
            name
            for name in sorted(CachedStatistics.of(self.manifest.identity).files)
            if name not in files
            or self._folder.size(name) != files[name].bytes
            or self._folder.sha256(name) != files[name].sha256
        ]

    def write_file(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Write a file beside the shards, durable before it is entered into the manifest.

        Raises:
            CacheError: the disk cannot be written to.

        """
        self._hold()
        written = self._folder.replace(name, write)
        with self._ledger:
            self.manifest.files[name] = written
            write_manifest(self._folder, self.manifest)

    def finish(self) -> None:
        """Mark the cache complete and write its README.md.

        Raises:
            CacheError: shards are missing, or the disk cannot be written to.

        """
        missing = self.waiting
        if missing:
            raise CacheError(
                f"{self.location} lacks {len(missing)} of {self.manifest.expected_count} shards (the first "
                f"is {missing[0]}): run the same build command again"
            )
        lacking = CachedStatistics.of(self.manifest.identity).files - self.manifest.files.keys()
        if lacking:
            raise CacheError(f"{self.location} lacks {min(lacking)}: run the same build command again")
        if self.manifest.complete:
            return
        self._hold()
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
                # A shard that nobody came to enter needs the manifest to be resumed by.
                if not any(name.endswith(ENTRY) for name in self._folder.names()):
                    self._folder.remove(MANIFEST_NAME)
                    for name in self.manifest.files:
                        self._folder.remove(name)
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
            refuse_other(self.location, manifest, asked)
            self._fresh = False
            sizes = self._folder.sizes()
            manifest.shards = [shard for shard in manifest.shards if _is_there(shard, sizes)]
            manifest.shards += left_entries(self._folder, manifest)
            manifest.shards.sort(key=lambda shard: shard.index)
            if len(manifest.shards) < manifest.expected_count:
                manifest.complete = False
                # Written by two builders: a reader of the provenance must see both.
                manifest.provenance.setdefault("resumed", []).append(asked.provenance)
            if not manifest.complete:
                # Before the entry files that it took in are tidied away.
                write_manifest(self._folder, manifest)
        self._tidy(manifest, keep_manifest=not self._fresh)
        if self._fresh:
            write_manifest(self._folder, manifest)
        return manifest

    def _tidy(self, manifest: Manifest, *, keep_manifest: bool) -> None:
        """Remove our own files that the manifest does not know: temporaries, orphans, an old cache.

        The manifest goes first, so that no instant has a manifest of shards that are gone.
        """
        keep = {LOCK_NAME, *(shard.file for shard in manifest.shards), *manifest.files}
        keep |= {MANIFEST_NAME} if keep_manifest else set()
        keep |= {CARD_NAME} if manifest.complete else set()
        names = [name for name in self._folder.names() if is_ours(name) and name not in keep]
        for name in sorted(names, key=lambda name: name != MANIFEST_NAME):
            self._folder.remove(name)
        if not keep_manifest:
            clear_scores(self._folder)

    def _enter(self, shard: Shard) -> None:
        with self._ledger:
            others = [other for other in self.manifest.shards if other.index != shard.index]
            self._hold()
            self.manifest.shards = sorted([*others, shard], key=lambda entry: entry.index)
            write_manifest(self._folder, self.manifest)

    def _hold(self) -> None:
        """Make sure that the folder is still this builder's to write into."""
        if self._lock is None:
            raise ValueError("the cache writer is closed")
        self._lock.check()

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


def _is_there(shard: Shard, sizes: Mapping[str, int]) -> bool:
    return shard.file is None or sizes.get(shard.file) == shard.bytes
