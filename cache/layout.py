"""Which files are a cache's own, and which folders a builder may claim."""

from __future__ import annotations

import re

from .card import CARD_NAME
from .errors import CacheError
from .manifest import MANIFEST_NAME, Manifest, identity_differences, read_manifest
from .schema import HEAD_NAME
from .scores.sets import SCORES_FOLDER
from .storage.files import TEMPORARY, Folder
from .storage.lock import LOCK_NAME

OPTIONS_NAME = "tdpo.yaml"
"""The builder's resolved options, for people; the manifest is what counts."""
ENTRY = ".entry.json"


def shard_name(index: int) -> str:
    """Name of a shard's file: `pairs-00000.parquet`."""
    return f"pairs-{index:05d}.parquet"


def entry_name(index: int) -> str:
    """Name of a shard's entry file, which waits beside it to be entered: `pairs-00000.entry.json`."""
    return f"pairs-{index:05d}{ENTRY}"


def is_ours(name: str) -> bool:
    """Whether a file of this name in a cache's folder is the cache's own."""
    stem = name.removesuffix(TEMPORARY)
    return (
        stem in (MANIFEST_NAME, CARD_NAME, OPTIONS_NAME, HEAD_NAME)
        or name == LOCK_NAME
        or bool(re.fullmatch(r"pairs-\d{5,}\.(parquet|entry\.json)", stem))
    )


def refuse_foreign(folder: Folder, overwrite: bool) -> None:
    """Refuse a folder with files that are not a cache's, before anything is written into it."""
    if folder.is_file():
        raise CacheError(f"{folder.location} is a file: choose another --out")
    names = folder.names()
    if MANIFEST_NAME in names:
        if not overwrite:
            read_manifest(folder)
        return
    foreign = [name for name in names if not is_ours(name) and name != SCORES_FOLDER]
    shards = [name for name in names if name.endswith(".parquet")]
    if foreign or CARD_NAME in names or (shards and not overwrite):
        example = (foreign or shards or [CARD_NAME])[0]
        raise CacheError(
            f"{folder.location} is not empty and not a cache (it holds {example}): choose another --out"
        )


def refuse_other(place: str, there: Manifest, asked: Manifest) -> None:
    """Refuse to go on with a cache of something else, and say where the two differ."""
    differences = identity_differences(there.request, asked.request)
    if differences:
        raise CacheError(
            f"{place} holds another cache: {'; '.join(differences)}. "
            "Choose another --out, or replace it with --overwrite"
        )
