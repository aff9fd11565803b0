"""Data and scripts put into a page so that nothing in them is ever read as markup."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

_DIGITS = 6
# What could end a script, open a comment in it, or be a line's end for old JavaScript but not for JSON.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029\u0085"}


def as_script_json(value: Any) -> Markup:
    """``value`` as JSON that may stand inside a ``<script>``; numbers that are not finite become null."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate is no character of UTF-8.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return Markup(text.translate(_UNSAFE))


def as_script_text(script: str) -> Markup:
    """A script of ours or of a library's that may stand inside a ``<script>``.

    In valid JavaScript these sequences stand in strings, templates and regular expressions only, in which a
    backslash before the slash, or the code for ``<``, says the same.
    """
    escaped = re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)
    return Markup(escaped.replace("<!--", r"\x3c!--"))


def plain(value: Any) -> Any:
    """``value`` of plain Python types: numpy's numbers and arrays too, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def packed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with its rows as columns, which takes a fraction of the bytes; the page's script unpacks them.

    ``{"values": [{"x": 1, "run": "a"}, ...]}`` becomes ``{"columns": {"x": [1, ...], "run": {"of": ["a"],
    "at": [0, ...]}}}``: texts by their number, numbers with six digits. Of ``data`` anywhere in the spec, and
    of each of its ``datasets``.
    """
    return {str(name): _packed_part(name, part) for name, part in spec.items()}


def _packed_part(name: str, part: Any) -> Any:
    if name == "data" and isinstance(part, Mapping) and _are_rows(part.get("values")):
        return {**{k: v for k, v in part.items() if k != "values"}, "columns": _columns(part["values"])}
    if name == "datasets" and isinstance(part, Mapping):
        return {k: {"columns": _columns(v)} if _are_rows(v) else v for k, v in part.items()}
    if isinstance(part, Mapping):
        return packed(part)
    return [_packed_part("", one) for one in part] if isinstance(part, list) else part


def _are_rows(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(row, Mapping) for row in values)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> Any:
    if values and all(isinstance(value, str) for value in values):
        numbers = {text: number for number, text in enumerate(dict.fromkeys(values))}
        return {"of": list(numbers), "at": [numbers[value] for value in values]}
    return [_short(value) for value in values]


def _short(value: Any) -> Any:
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
