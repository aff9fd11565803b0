"""Writing one shard: its file, and its entry for the ledger, which may lie beside it until it is entered."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .encode import check_scored, write_pairs
from .errors import CacheError
from .layout import entry_name, shard_name
from .ledger import FIRST_ROWS, Shard, Skipped, parse_shard
from .manifest import plain_json
from .pairs import completion_tokens
from .schema import ROW_GROUP_ROWS, CachedStatistics
from .storage.files import Folder, Written, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .manifest import Manifest
    from .pairs import ScoredPair


def source_rows(manifest: Manifest, index: int) -> range:
    """Rows of the source data that a shard covers."""
    start = index * manifest.shard_rows
    return range(start, min(start + manifest.shard_rows, manifest.source_rows))


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards into the folder of a cache whose lock and ledger another process holds.

    Every shard is followed by its entry file, so that it is not lost whichever process ends: the builder
    that holds the lock enters it, now or when the build is resumed.

    Args:
        folder: the cache's folder.
        manifest: what is built: identity, rows and part; its ledger is not looked at.
        row_group_rows: pairs in each Parquet row group.

    """

    folder: Folder
    manifest: Manifest
    row_group_rows: int = ROW_GROUP_ROWS

    def write_shard(
        self, index: int, scored: Sequence[ScoredPair], skipped: Mapping[str, Sequence[int]]
    ) -> Shard:
        """Write a shard and its entry file; see `CacheWriter.write_shard` for arguments and errors."""
        shard = self.write_file(index, scored, skipped)
        document = {"shard": asdict(shard), "seal": _seal(self.manifest, shard)}
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.folder.replace(entry_name(index), lambda file: write_all(file, text))
        return shard

    def write_file(
        self, index: int, scored: Sequence[ScoredPair], skipped: Mapping[str, Sequence[int]]
    ) -> Shard:
        """Write a shard's file alone and return its entry."""
        span = source_rows(self.manifest, index)
        _check_rows(index, span, [one.pair.row for one in scored], skipped)
        statistics = CachedStatistics.of(self.manifest.identity)
        for one in scored:
            check_scored(one, statistics)
        ordered = sorted(scored, key=lambda one: one.pair.row)
        written, name = Written(0, ""), None
        if ordered:
            name = shard_name(index)
            written = self.folder.replace(
                name,
                lambda file: write_pairs(file, ordered, statistics, row_group_rows=self.row_group_rows),
            )
        return Shard(
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


def left_entries(folder: Folder, manifest: Manifest) -> Iterator[Shard]:
    """Yield the entry files' shards that belong to this cache and whose files are there, byte for byte."""
    names = set(folder.names())
    known = {shard.index for shard in manifest.shards}
    for index in manifest.expected:
        if index in known or entry_name(index) not in names:
            continue
        shard = _parse_entry(folder.read(entry_name(index)), manifest)
        if shard is not None and shard.index == index and (shard.file is None or _is_whole(folder, shard)):
            yield shard


def _parse_entry(content: bytes, manifest: Manifest) -> Shard | None:
    """Read an entry file; None where it is damaged or another cache's: the shard is scored again."""
    with suppress(CacheError, ValueError, LookupError, TypeError, RecursionError):
        document = json.loads(content.decode())
        shard = parse_shard(document["shard"], "an entry file")
        if document["seal"] == _seal(manifest, shard):
            return shard
    return None


def _is_whole(folder: Folder, shard: Shard) -> bool:
    return (
        shard.file == shard_name(shard.index)
        and folder.size(shard.file) == shard.bytes
        and folder.sha256(shard.file) == shard.sha256
    )


def _seal(manifest: Manifest, shard: Shard) -> str:
    """Return what proves that an entry is whole and of this cache: caches of one request hold the same."""
    document = plain_json({"request": manifest.request, "shard": asdict(shard)})
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _check_rows(index: int, span: range, kept: Sequence[int], skipped: Mapping[str, Sequence[int]]) -> None:
    rows = sorted([*kept, *(row for rows in skipped.values() for row in rows)])
    if rows != list(span):
        wrong = sorted(set(rows) ^ set(span)) or [row for row, after in pairwise(rows) if row == after]
        raise ValueError(
            f"shard {index} covers rows {span.start} up to {span.stop}, each kept or skipped once; "
            f"row {wrong[0]} is not"
        )
