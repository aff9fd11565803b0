"""The ledger: a cache's finished shards and its part of them, and how they are read back, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import CacheError
from .storage.files import Written, is_plain_name

FIRST_ROWS = 10
"""Row numbers that are kept of the rows skipped for one reason."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Skipped:
    """Rows of the source data left out for one reason: how many, and the first few row numbers."""

    count: int
    first_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """One entry of the ledger: a finished shard.

    Attributes:
        file: name of the Parquet file, None where every row of the shard was skipped.
        index: place of the shard among the shards.
        source_rows: the rows of the source data it covers, from and up to (exclusive).
        rows: pairs kept.
        prompt_tokens, completion_tokens: tokens in them; completion tokens count both sides.
        bytes, sha256: size and checksum of the file.
        skipped: reason -> rows left out.

    """

    file: str | None
    index: int
    source_rows: tuple[int, int]
    rows: int
    prompt_tokens: int
    completion_tokens: int
    bytes: int
    sha256: str
    skipped: dict[str, Skipped] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A contiguous run of a cache's shards, built on its own: part `index` (from 1) of `of` parts."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `2/5`.

        Raises:
            ValueError: it is not two whole numbers i/n with 1 <= i <= n.

        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(text)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def shards(self, count: int) -> range:
        """Shards of this part, of `count` in all: parts are as even as can be, and may be empty."""
        return range((self.index - 1) * count // self.of, self.index * count // self.of)


def parse_part(entry: Any, path: str) -> Part:
    """Check the manifest's `part`. Raises CacheError where it is damaged."""
    if not isinstance(entry, dict):
        raise damaged(path, '"part" is not an object')
    part = Part(get_count(entry, "index", path), get_count(entry, "of", path))
    if not 1 <= part.index <= part.of:
        raise damaged(path, f'"part" is {part.index} of {part.of}')
    return part


def parse_files(entries: Any, path: str) -> dict[str, Written]:
    """Check the manifest's `files`. Raises CacheError where they are damaged or lie outside the folder."""
    if not isinstance(entries, dict):
        raise damaged(path, '"files" is not an object')
    files = {}
    for name, entry in entries.items():
        if not is_plain_name(name):
            raise CacheError(
                f"{path} names the file {name!r}, which is not a plain file name inside the folder: "
                "do not use this cache, unless you know who wrote it"
            )
        if not isinstance(entry, dict):
            raise damaged(path, f"the entry of {name} is not an object")
        sha256 = get_field(entry, "sha256", str, path)
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise damaged(path, f"the sha256 of {name} is not 64 hexadecimal digits")
        files[name] = Written(get_count(entry, "bytes", path), sha256)
    return files


def parse_shard(entry: Any, path: str) -> Shard:
    """Check one entry of the ledger as read from `path`.

    Raises:
        CacheError: it is damaged, or names a file outside the folder.

    """
    if not isinstance(entry, dict):
        raise damaged(path, "a shard's entry is not an object")
    file = entry.get("file")
    if file is not None and (not isinstance(file, str) or not is_plain_name(file)):
        raise CacheError(
            f"{path} names the shard {file!r}, which is not a plain file name inside the folder: "
            "do not use this cache, unless you know who wrote it"
        )
    rows = get_count(entry, "rows", path)
    if file is None and rows:
        raise damaged(path, "a shard with rows has no file")
    span = get_field(entry, "source_rows", list, path)
    if len(span) != 2 or not _whole(span) or span[1] < span[0]:
        raise damaged(path, "a shard's source_rows are not two row numbers")
    sha256 = get_field(entry, "sha256", str, path)
    if file is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise damaged(path, f"the sha256 of {file} is not 64 hexadecimal digits")
    return Shard(
        file=file,
        index=get_count(entry, "index", path),
        source_rows=(span[0], span[1]),
        rows=rows,
        prompt_tokens=get_count(entry, "prompt_tokens", path),
        completion_tokens=get_count(entry, "completion_tokens", path),
        bytes=get_count(entry, "bytes", path),
        sha256=sha256,
        skipped={
            reason: _parse_skipped(skipped, path)
            for reason, skipped in get_field(entry, "skipped", dict, path).items()
        },
    )


def _parse_skipped(entry: Any, path: str) -> Skipped:
    if not isinstance(entry, dict):
        raise damaged(path, "a shard's skipped rows are not an object")
    first_rows = get_field(entry, "first_rows", list, path)
    if not _whole(first_rows):
        raise damaged(path, "a shard's skipped first_rows are not row numbers")
    return Skipped(get_count(entry, "count", path), tuple(first_rows))


def damaged(path: str, what: str) -> CacheError:
    """What is raised for a manifest that cannot be what a builder wrote."""
    return CacheError(f"{path} is damaged: {what}; restore it, or build again with --overwrite")


def _whole(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def get_field(document: dict[str, Any], key: str, kind: type[_T], path: str) -> _T:
    """Return a field of just this type, or raise CacheError."""
    value = document.get(key)
    if type(value) is not kind:  # not isinstance: True is no count
        raise damaged(path, f'"{key}" is missing or not of the right type')
    return value


def get_count(document: dict[str, Any], key: str, path: str) -> int:
    """Return a whole number of at least 0, or raise CacheError."""
    value = get_field(document, key, int, path)
    if value < 0:
        raise damaged(path, f'"{key}" is negative')
    return value
