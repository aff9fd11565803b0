"""Joining the parts of a cache, built on several machines, into the cache that one build would have given."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import CacheError
from .layout import OPTIONS_NAME
from .ledger import Part
from .manifest import Manifest, identity_differences, read_manifest
from .reader import CacheReader, open_cache
from .storage.files import Folder, is_url
from .writer import CacheWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ALL = "merge takes all parts of one cache, each built with --part i/n"


def merge_caches(
    parts: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CacheReader:
    """Join the parts of a cache; what `tdpo cache merge` does.

    The result is the cache of an undivided build: the same shards byte for byte, and the same manifest but
    for its provenance, which holds that of every part. Shards are copied, each checked against its checksum
    on the way; the parts are left as they are. The same call goes on with a merge that was cut off.

    Args:
        parts: folders of all parts, in any order.
        out: folder of the whole cache, empty, new, or left by a merge that was cut off.
        overwrite: replace a cache that `out` holds.
        progress: told how many bytes are copied, and of how many.

    Returns:
        The whole cache, opened.

    Raises:
        CacheError: parts that do not belong together, are not finished, are missing or given twice; a damaged
            shard; an `out` that cannot be written to or holds something else.

    """
    _check_places(parts, out)
    folders = [Folder.at(part) for part in parts]
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        _check_part(folder, manifest)
    _check_together(folders, manifests)
    first = manifests[0]
    origin = {shard.index: (at, shard) for at, manifest in enumerate(manifests) for shard in manifest.shards}
    with CacheWriter(
        out,
        first.identity,
        {**first.provenance, "parts": {str(manifest.part): manifest.provenance for manifest in manifests}},
        source_rows=first.source_rows,
        shard_rows=first.shard_rows,
        overwrite=overwrite,
    ) as writer:
        waiting = writer.waiting
        total = sum(origin[index][1].bytes for index in waiting)
        done = 0
        for index in waiting:
            at, shard = origin[index]
            writer.copy_shard(folders[at], shard)
            done += shard.bytes
            if progress is not None:
                progress(done, total)
        for name in writer.lacking_files:
            writer.copy_file(folders[0], name, first.files[name])
        writer.finish()
        with suppress(CacheError):  # parts copied without it are as good
            writer.write_options(_whole_options(folders[0].read(OPTIONS_NAME), os.fspath(out)))
    return open_cache(out)


def _check_places(parts: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    if not parts:
        raise CacheError(f"nothing to merge: {_ALL}")
    places = [_place(part) for part in parts]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise CacheError(f"{os.fspath(parts[at])} is given twice: {_ALL}")
    if _place(out) in places:
        raise CacheError(f"--out {os.fspath(out)} is one of the parts: choose another --out")


def _place(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text.rstrip("/") if is_url(text) else os.path.realpath(text.removeprefix("file://"))


def _check_part(folder: Folder, manifest: Manifest) -> None:
    where = folder.location
    if manifest.part is None:
        raise CacheError(f"{where} holds a whole cache, not a part of one: {_ALL}")
    if not manifest.complete:
        raise CacheError(
            f"the build of {where} has not ended, {len(manifest.shards)} of {manifest.expected_count} shards "
            "are finished: run the same build command again, then merge"
        )
    if manifest.scores:
        raise CacheError(
            f"{where} holds the added statistics {min(manifest.scores)}, which merge does not join: merge "
            "parts without them, then run tdpo cache add on the whole"
        )
    sizes = folder.sizes()
    files = {shard.file: shard.bytes for shard in manifest.shards if shard.file is not None}
    for name, size in (files | {name: file.bytes for name, file in manifest.files.items()}).items():
        if sizes.get(name) != size:
            found = f"has {sizes[name]} bytes instead of {size}" if name in sizes else "is missing"
            raise CacheError(
                f"{folder.locate(name)} {found}: restore it, or run the part's build command again"
            )


def _check_together(folders: Sequence[Folder], manifests: Sequence[Manifest]) -> None:
    """Check that finished parts are all of one cache's, and each there once."""
    first, here = manifests[0], folders[0].location
    places: dict[int, str] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        assert first.part is not None
        assert manifest.part is not None
        words = f"{here} has", f"{folder.location} has"
        if differences := identity_differences(_whole(first), _whole(manifest), words):
            raise CacheError(f"the parts are not of one cache: {'; '.join(differences)}")
        if manifest.files != first.files:
            name = min(n for n in manifest.files | first.files if manifest.files.get(n) != first.files.get(n))
            raise CacheError(f"the parts are not of one cache: {here} and {folder.location} differ in {name}")
        if (index := manifest.part.index) in places:
            raise CacheError(
                f"{places[index]} and {folder.location} are both part {manifest.part}: give each part once"
            )
        places[index] = folder.location
    assert first.part is not None
    lacking = [Part(i, first.part.of) for i in range(1, first.part.of + 1) if i not in places]
    if lacking:
        more = f" and {len(lacking) - 1} more are" if len(lacking) > 1 else " is"
        raise CacheError(
            f"part {lacking[0]}{more} missing: give its folder too, or build it with --part {lacking[0]}"
        )


def _whole(manifest: Manifest) -> dict[str, Any]:
    """Return what all parts agree on: the request, and of the part only how many there are."""
    assert manifest.part is not None
    return manifest.request | {"part": f"i/{manifest.part.of}"}


def _whole_options(text: bytes, out: str) -> str:
    """Return a part's options as those of the whole cache."""
    import yaml

    try:
        options = yaml.safe_load(text)
        options["build"] |= {"part": None, "out": out}
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise CacheError(f"no options: {error}") from None
