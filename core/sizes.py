"""Sizes in bytes, as people write and read them."""

import re

from .errors import ConfigError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}


def size_text(count: float) -> str:
    """Three figures and a decimal unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as ``24GB`` (24e9) or ``80GiB`` (80 * 2**30).

    Raises:
        ConfigError: it is none; names ``option``.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)b?\s*", text, re.IGNORECASE)
    size = 0
    if found is not None:
        size = int(float(found[1]) * {**_UNITS, **_BINARY}[found[2].lower()])
    if size <= 0:
        raise ConfigError(f"{option} {text}: is no size; give a number with its unit, such as 24GB or 80GiB")
    return size
