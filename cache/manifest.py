"""The manifest: what a cache holds, where it came from, and which shards are finished."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import CacheError
from .ledger import (
    FIRST_ROWS,
    Part,
    Shard,
    Skipped,
    damaged,
    get_count,
    get_field,
    parse_files,
    parse_part,
    parse_shard,
)
from .schema import FORMAT, FORMAT_VERSION
from .scores.sets import ScoreSet, parse_scores
from .storage.files import Written, write_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .storage.files import Folder

MANIFEST_NAME = "manifest.json"


@dataclass(slots=True)
class Manifest:
    """The content of `manifest.json`. Totals are derived from the ledger, never kept beside it."""

    identity: dict[str, Any]
    provenance: dict[str, Any]
    source_rows: int
    shard_rows: int
    shards: list[Shard] = field(default_factory=list)
    complete: bool = False
    part: Part | None = None
    scores: dict[str, ScoreSet] = field(default_factory=dict)
    files: dict[str, Written] = field(default_factory=dict)
    """Further files of the cache by name, such as the reference's output head."""

    @property
    def shard_count(self) -> int:
        """Shards of the finished cache, of all its parts."""
        return -(-self.source_rows // self.shard_rows)

    @property
    def expected(self) -> range:
        """Indices of the shards that this folder holds when it is finished: all, or those of its part."""
        return range(self.shard_count) if self.part is None else self.part.shards(self.shard_count)

    @property
    def expected_count(self) -> int:
        """Number of `expected` shards; `len` of a range fails on what a damaged manifest may say."""
        return self.expected.stop - self.expected.start

    @property
    def request(self) -> dict[str, Any]:
        """All that two folders must agree on for one to go on with the other."""
        return self.identity | {
            "source_rows": self.source_rows,
            "shard_rows": self.shard_rows,
            **({} if self.part is None else {"part": str(self.part)}),
        }

    @property
    def rows(self) -> int:
        """Pairs kept in the finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens in the finished shards."""
        return sum(shard.prompt_tokens for shard in self.shards)

    @property
    def completion_tokens(self) -> int:
        """Completion tokens, of both sides, in the finished shards."""
        return sum(shard.completion_tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of the finished shards' files."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> dict[str, Skipped]:
        """Reason -> rows left out of the finished shards."""
        counts: Counter[str] = Counter()
        first: dict[str, tuple[int, ...]] = {}
        for shard in self.shards:
            for reason, skipped in shard.skipped.items():
                counts[reason] += skipped.count
                first[reason] = (first.get(reason, ()) + skipped.first_rows)[:FIRST_ROWS]
        return {reason: Skipped(count, first[reason]) for reason, count in sorted(counts.items())}

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        totals = {
            "rows": self.rows,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "bytes": self.bytes,
            "skipped": {reason: skipped.count for reason, skipped in self.skipped.items()},
        }
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": self.complete,
            "identity": self.identity,
            "provenance": self.provenance,
            "source_rows": self.source_rows,
            "shard_rows": self.shard_rows,
            **({} if self.part is None else {"part": asdict(self.part)}),
            "totals": totals,
            "shards": [asdict(shard) for shard in self.shards],
            **({"files": {n: asdict(one) for n, one in sorted(self.files.items())}} if self.files else {}),
            **({"scores": {n: one.to_dict() for n, one in self.scores.items()}} if self.scores else {}),
        }
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as JSON would give it back (tuples as lists, keys as strings), to compare by.

    Raises:
        TypeError, ValueError: something in it has no place in JSON.

    """
    plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return plain


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's `identity`: a name for what the cache holds, in hexadecimal."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def identity_differences(
    cached: Mapping[str, Any],
    asked: Mapping[str, Any],
    words: tuple[str, str] = ("the cache has", "you ask for"),
) -> list[str]:
    """Say where two identities differ, a line each: `statistics.k: the cache has 8, you ask for 16`."""
    have, want = _flat(plain_json(cached)), _flat(plain_json(asked))
    return [
        f"{key}: {words[0]} {have.get(key, 'nothing')}, {words[1]} {want.get(key, 'nothing')}"
        for key in sorted(have.keys() | want.keys())
        if have.get(key) != want.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Map the dotted key of each leaf to its JSON text."""
    if isinstance(value, dict) and (value or not prefix):
        leaves: dict[str, str] = {}
        for key, inner in value.items():
            leaves |= _flat(inner, f"{prefix}.{key}" if prefix else key)
        return leaves
    return {prefix: json.dumps(value, sort_keys=True, ensure_ascii=False)}


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Replace `manifest.json` atomically."""
    text = manifest.to_json().encode()
    folder.replace(MANIFEST_NAME, lambda file: write_all(file, text))


def read_manifest(folder: Folder) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        CacheError: no such folder, no manifest in it, or one that is damaged, of another format, of a newer
            version, or that names files outside the folder.

    """
    path = folder.locate(MANIFEST_NAME)
    if not folder.exists():
        found = "is not a folder" if folder.is_file() else "does not exist"
        raise CacheError(
            f"no cache at {folder.location}: it {found}; check the path, or run tdpo cache build"
        )
    if folder.size(MANIFEST_NAME) is None:
        raise CacheError(
            f"{folder.location} is not a cache: it has no {MANIFEST_NAME}; check the path, or build one"
        )
    try:
        document = json.loads(folder.read(MANIFEST_NAME).decode())
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0]
        raise CacheError(
            f"{path} is damaged, not JSON ({what}): restore it, or build again with --overwrite"
        ) from None
    return _parse(document, path)


def _parse(document: Any, path: str) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CacheError(
            f'{path} is not the manifest of a cache ("format" is not "{FORMAT}"): check the path'
        )
    version = get_field(document, "format_version", int, path)
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{path} is of format version {version}, this tdpo reads up to {FORMAT_VERSION}: upgrade tdpo"
        )
    manifest = Manifest(
        identity=get_field(document, "identity", dict, path),
        provenance=get_field(document, "provenance", dict, path),
        source_rows=get_count(document, "source_rows", path),
        shard_rows=get_count(document, "shard_rows", path),
        shards=[parse_shard(entry, path) for entry in get_field(document, "shards", list, path)],
        complete=get_field(document, "complete", bool, path),
        part=parse_part(document["part"], path) if "part" in document else None,
        files=parse_files(document.get("files", {}), path),
    )
    try:
        manifest.scores = parse_scores(document.get("scores", {}))
    except ValueError as error:
        raise damaged(path, str(error)) from None
    if manifest.shard_rows < 1:
        raise damaged(path, '"shard_rows" is below 1')
    indices = [shard.index for shard in manifest.shards]
    if indices != sorted(set(indices)) or any(index not in manifest.expected for index in indices):
        raise damaged(path, "its shards are out of order, repeated or too many")
    if manifest.complete and len(indices) != manifest.expected_count:
        raise damaged(path, f"it is marked complete with {len(indices)} of {manifest.expected_count} shards")
    return manifest
