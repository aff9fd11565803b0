"""The reference's output head beside the shards: what its safetensors file must say of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .errors import CacheError
from .schema import HEAD_NAME
from .storage.files import explained

if TYPE_CHECKING:
    from .schema import CachedStatistics
    from .storage.files import Folder

_LONGEST_HEADER = 1 << 20


class _UnfitError(Exception):
    """What is wrong with the file."""


def head_fault(folder: Folder, statistics: CachedStatistics) -> str | None:
    """Say what is wrong with the head, going by its file's header; None where nothing is.

    Raises:
        CacheError: the file cannot be read.

    """
    try:
        _parse(folder, statistics)
    except _UnfitError as error:
        return str(error)
    return None


def head_numbers(folder: Folder, statistics: CachedStatistics) -> tuple[float, float | None]:
    """Return the scale of the logits, and their soft cap or None, of a head that fits the hidden states.

    Raises:
        CacheError: the file cannot be read, or does not fit.

    """
    try:
        return _parse(folder, statistics)
    except _UnfitError as error:
        raise CacheError(
            f"{folder.locate(HEAD_NAME)} {error}: remove it and run the same build command again"
        ) from None


def _parse(folder: Folder, statistics: CachedStatistics) -> tuple[float, float | None]:
    with explained("read", folder.locate(HEAD_NAME)), folder.source(HEAD_NAME) as source:
        length = int.from_bytes(source.read(8), "little")
        text = source.read(length) if length <= _LONGEST_HEADER else b""
    try:
        header: dict[str, Any] = json.loads(text)
        described = json.loads(header.pop("__metadata__")["head"])
        shapes = {name: list(entry["shape"]) for name, entry in header.items()}
        scale, softcap = described["scale"], described["softcap"]
        numbers = float(scale), None if softcap is None else float(softcap)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _UnfitError("is no safetensors file of an output head") from None
    wanted = {"weight": [statistics.vocab_size, statistics.hidden_size], "bias": [statistics.vocab_size]}
    if "weight" not in shapes:
        raise _UnfitError("holds no weight")
    for name, shape in shapes.items():
        if shape != wanted.get(name):
            raise _UnfitError(f"holds {name} {shape} instead of {wanted.get(name, 'nothing')}")
    return numbers
