"""Verifying a cache: files against the ledger, shards against the format. Every fault is collected."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import CacheError
from .head import head_fault
from .layout import ENTRY
from .manifest import MANIFEST_NAME
from .schema import HEAD_NAME, CachedStatistics, shard_schema
from .scores.verify import check_scores
from .values import check_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from .ledger import Shard
    from .manifest import Manifest
    from .storage.files import Folder, Written
    from .values import Finding

SHOWN = 20
"""Faults of one file that are told one by one; the others are counted."""

_AGAIN = "run the same build command again"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: in which file and, where that is known, which source row and column."""

    file: str
    row: int | None
    column: str | None
    what: str

    def __str__(self) -> str:
        row = None if self.row is None else f"row {self.row}"
        return ": ".join(part for part in (self.file, row, self.column, self.what) if part is not None)


class Faults:
    """The faults of a cache: the first `SHOWN` of each file, and how many there are in all."""

    def __init__(self) -> None:
        self.shown: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def add(self, file: str, row: int | None, column: str | None, what: str) -> None:
        """Take in a fault."""
        self.counts[file] += 1
        if self.counts[file] <= SHOWN:
            self.shown.append(Fault(file, row, column, what))

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def more(self) -> dict[str, int]:
        """File -> its faults beyond those shown."""
        return {file: count - SHOWN for file, count in self.counts.items() if count > SHOWN}


def check_cache(folder: Folder, manifest: Manifest, progress: Callable[[int], None]) -> Faults:
    """Return the faults of a cache, as far as they show without its reference.

    Reads every shard, one row group at a time. What a shard whose checksum is wrong holds is not looked at.

    Args:
        folder: the cache's folder.
        manifest: its manifest, as `read_manifest` gives it.
        progress: told how many pairs are done, over all shards.

    Raises:
        CacheError: the manifest does not say what the shards hold, or the folder cannot be listed.

    """
    statistics = CachedStatistics.of(manifest.identity, folder.location)
    faults = Faults()
    for what in (*_check_manifest(folder, manifest), *_check_names(folder, manifest)):
        faults.add(MANIFEST_NAME, None, None, what)
    for name in sorted(statistics.files | manifest.files.keys()):
        for what in _check_other(folder, name, manifest, statistics):
            faults.add(name, None, None, what)
    done = 0
    for shard in manifest.shards:
        label = shard.file or f"shard {shard.index}"
        for what in _check_entry(shard, manifest):
            faults.add(MANIFEST_NAME, None, None, f"the entry of {label} {what}")
        if shard.file is not None:
            for finding in _check_file(folder, shard, statistics, progress, done):
                faults.add(shard.file, *finding)
        done += shard.rows
        progress(done)
    for file, row, column, what in check_scores(folder, manifest):
        faults.add(file, row, column, what)
    return faults


def _check_manifest(folder: Folder, manifest: Manifest) -> Iterator[str]:
    done, total = len(manifest.shards), manifest.expected_count
    if done < total:
        yield f"{total - done:,} of {total:,} shards missing: {_AGAIN}"
    elif not manifest.complete:
        yield f"not marked complete, though no shard is missing: {_AGAIN}"
    kept = json.loads(folder.read(MANIFEST_NAME)).get("totals")
    for key, value in json.loads(manifest.to_json())["totals"].items():
        found = kept.get(key) if isinstance(kept, dict) else None
        if found != value:
            yield f"totals.{key} is {json.dumps(found)}, the ledger adds up to {json.dumps(value)}"


def _check_names(folder: Folder, manifest: Manifest) -> Iterator[str]:
    """Yield the files that DuckDB or a hub would take for shards: they read pairs-*.parquet."""
    named, names = {shard.file for shard in manifest.shards}, folder.names()
    for name in names:
        if fnmatchcase(name, "pairs-*.parquet") and name not in named:
            waits = name.removesuffix(".parquet") + ENTRY in names
            what = f"its entry file waits: {_AGAIN}" if waits else "move it elsewhere"
            yield f"{name} is in the folder, but not in the ledger: {what}"
    twice = [name for name, count in Counter(shard.file for shard in manifest.shards).items() if count > 1]
    for file in filter(None, twice):
        yield f"{file} is in the ledger more than once"


def _check_entry(shard: Shard, manifest: Manifest) -> Iterator[str]:
    start = shard.index * manifest.shard_rows
    span = start, min(start + manifest.shard_rows, manifest.source_rows)
    if shard.source_rows != span:
        yield f"covers the source rows {list(shard.source_rows)}, shard {shard.index} covers {list(span)}"
    skipped = sum(entry.count for entry in shard.skipped.values())
    if shard.rows + skipped != span[1] - span[0]:
        yield f"keeps {shard.rows} and skips {skipped} of {span[1] - span[0]} source rows"
    for reason, entry in shard.skipped.items():
        if not all(span[0] <= row < span[1] for row in entry.first_rows):
            yield f'has "{reason}" rows outside of its source rows'
        if len(entry.first_rows) > entry.count:
            yield f'names more "{reason}" rows than it counts'
    if shard.file is None and (shard.bytes or shard.prompt_tokens or shard.completion_tokens):
        yield "has tokens or bytes, but no file"


def _check_file(
    folder: Folder,
    shard: Shard,
    statistics: CachedStatistics,
    progress: Callable[[int], None],
    done: int,
) -> Iterator[Finding]:
    name = str(shard.file)
    try:
        if damage := _damage(folder, name, shard):
            yield None, None, damage
            return
        with folder.parquet(name) as file:
            wrong = list(_check_schema(file, statistics))
            yield from wrong
            if not wrong:
                yield from _check_rows(file, shard, statistics, lambda rows: progress(done + rows))
    except (CacheError, pa.ArrowException, OSError) as error:
        yield None, None, f"cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})"


def _check_other(
    folder: Folder, name: str, manifest: Manifest, statistics: CachedStatistics
) -> Iterator[str]:
    """Yield what is wrong with a file beside the shards."""
    if name not in manifest.files:
        yield f"is not in the manifest: {_AGAIN}"
    elif damage := _damage(folder, name, manifest.files[name]):
        yield damage
    elif name == HEAD_NAME and (problem := head_fault(folder, statistics)):
        yield problem


def _damage(folder: Folder, name: str, shard: Shard | Written) -> str | None:
    """Return what is wrong with a file as a string of bytes."""
    size = folder.size(name)
    if size is None:
        return f"is missing: restore it, or {_AGAIN}"
    if size != shard.bytes:
        return f"has {size:,} bytes instead of {shard.bytes:,}: restore it, or {_AGAIN}"
    if folder.sha256(name) != shard.sha256:
        return f"is damaged, its sha256 is not the ledger's: restore it, or remove it and {_AGAIN}"
    return None


def _check_schema(file: pq.ParquetFile, statistics: CachedStatistics) -> Iterator[Finding]:
    """Yield where columns or metadata differ; descriptions and the order of columns are free."""
    found, wanted = file.schema_arrow, shard_schema(statistics)
    if len(set(found.names)) < len(found.names):
        yield None, None, "two columns have the same name"
        return
    for name in wanted.names:
        if name not in found.names:
            yield None, name, "the column is missing"
        elif not found.field(name).equals(wanted.field(name), check_metadata=False):
            yield None, name, f"is of type {_type(found.field(name))} instead of {_type(wanted.field(name))}"
    for name in found.names:
        if name not in wanted.names:
            yield None, name, "is no column of a cache with these statistics"
    metadata = file.metadata.metadata or {}
    for key, value in wanted.metadata.items():
        if metadata.get(key) != value:
            there = (metadata.get(key) or b"missing").decode(errors="replace")
            yield None, None, f"its metadata {key.decode()} is {there}, the manifest says {value.decode()}"


def _type(field: pa.Field) -> str:
    return f"{field.type}{' (nullable)' if field.nullable else ''}"


def _check_rows(
    file: pq.ParquetFile, shard: Shard, statistics: CachedStatistics, progress: Callable[[int], None]
) -> Iterator[Finding]:
    seen: Counter[str] = Counter()
    last = -1
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        if not len(table):
            continue
        rows = table.column("row").to_numpy()
        yield from _check_order(rows, last, shard)
        yield from check_values(table, statistics)
        last = int(rows[-1])
        seen["rows"] += len(rows)
        for key, columns in _TOKENS.items():
            seen[key] += sum(len(table.column(name).combine_chunks().flatten()) for name in columns)
        progress(min(seen["rows"], shard.rows))
    for key in ("rows", *_TOKENS):
        if seen[key] != getattr(shard, key):
            yield None, None, f"holds {seen[key]:,} {key}, the ledger says {getattr(shard, key):,}"


# Counts of the ledger -> the columns whose elements they count.
_TOKENS = {"prompt_tokens": ("prompt_ids",), "completion_tokens": ("chosen_ids", "rejected_ids")}


def _check_order(rows: NDArray[np.int64], last: int, shard: Shard) -> Iterator[Finding]:
    start, stop = shard.source_rows
    before = np.concatenate([[last], rows[:-1]])
    for at in np.flatnonzero((rows < start) | (rows >= stop)):
        yield int(rows[at]), "row", f"is not among the shard's source rows {start} .. {stop - 1}"
    for at in np.flatnonzero(rows <= before):
        if rows[at] >= start:  # a negative row follows none; it is told above
            yield int(rows[at]), "row", f"comes after row {before[at]}: rows must ascend"
