"""Columns of preference data: naming them the way tdpo does, and telling which form the rows have."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Form = Literal["explicit", "implicit", "conversational", "hh"]
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_LOOKED_AT = 1000
_SAMPLE = 20


def standard_columns(rows: "Dataset", column_map: Mapping[str, str], where: str) -> "Dataset":
    """``rows`` with only the columns that tdpo uses, under tdpo's names.

    ``column_map`` maps tdpo's name to the data's: ``{"prompt": "question"}``.

    Raises:
        DataError: a name that tdpo does not know, a column that the data lacks, no ``chosen`` or
            ``rejected``.
    """
    found = list(rows.column_names)
    for ours, theirs in column_map.items():
        if ours not in COLUMNS:
            raise DataError(
                f"--column-map {ours}={theirs}: tdpo has no column {ours!r}{_nearest(ours, COLUMNS)}"
            )
        if theirs not in found:
            raise DataError(
                f"{where}: no column {theirs!r} for --column-map {ours}={theirs}"
                f"{_nearest(theirs, found)}; found {_listed(found)}"
            )
    names = {ours: column_map.get(ours, ours) for ours in COLUMNS}
    names = {ours: theirs for ours, theirs in names.items() if theirs in found}
    for needed in ("chosen", "rejected"):
        if needed not in names:
            raise DataError(
                f"{where}: no column {needed!r}; found {_listed(found)}; tdpo needs 'chosen' and 'rejected', "
                f"and 'prompt' where it stands apart: name yours with --column-map {needed}=COLUMN"
            )
    if names["chosen"] == names["rejected"]:
        raise DataError(
            f"{where}: --column-map takes 'chosen' and 'rejected' from one column, {names['chosen']!r}"
        )
    # A column used twice (the prompt as a tool list, say) cannot be renamed to both names.
    if len(set(names.values())) < len(names):
        raise DataError(
            f"{where}: --column-map uses one column for two purposes: {_listed(list(names.values()))}"
        )
    selected = rows.select_columns(list(names.values()))
    return selected.rename_columns({theirs: ours for ours, theirs in names.items() if theirs != ours})


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")


def detect_form(rows: "Dataset", where: str) -> Form:
    """The form of the data, told from the first rows that have both sides.

    Raises:
        DataError: no row among the first thousand holds text or messages on both sides.
    """
    sample: list[dict[str, Any]] = []
    looked_at = min(_LOOKED_AT, len(rows))
    for start in range(0, looked_at, 100):
        block = rows[start : min(start + 100, looked_at)]
        columns = list(block)
        for values in zip(*block.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if _usable(row["chosen"]) and _usable(row["rejected"]):
                sample.append(row)
        if len(sample) >= _SAMPLE:
            break
    if not sample:
        first = rows[0]
        raise DataError(
            f"{where}: none of the first {looked_at} rows has text or messages on both sides (row 0: "
            f"'chosen' is {_kind(first['chosen'])}, 'rejected' is {_kind(first['rejected'])}); messages are "
            "lists of {role, content}; other columns can be named with --column-map"
        )
    return _form_of(sample)


def _form_of(sample: list[dict[str, Any]]) -> Form:
    if any(not isinstance(row[name], str) for row in sample for name in ("chosen", "rejected")):
        return "conversational"
    prompts = [row.get("prompt") for row in sample]
    if any(isinstance(prompt, (list, dict)) for prompt in prompts):
        return "conversational"
    if any(prompt is not None for prompt in prompts):
        return "explicit"
    # Real data has faults: a few rows without turns do not make the rest something else.
    turns = sum(
        all(mark in row[name] for name in ("chosen", "rejected") for mark in (HUMAN, ASSISTANT))
        for row in sample
    )
    return "hh" if 2 * turns > len(sample) else "implicit"


def _usable(side: Any) -> bool:
    if isinstance(side, str):
        return bool(side.strip())
    messages = [side] if isinstance(side, dict) else side
    return isinstance(messages, list) and bool(messages) and all(is_message(each) for each in messages)


def is_message(value: Any) -> bool:
    """Whether ``value`` is one message of a chat: a mapping with a role."""
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "text" if value.strip() else "empty text"
    if isinstance(value, list):
        return f"a list of {_kind(value[0])}" if value else "an empty list"
    if isinstance(value, dict):
        return "{" + ", ".join(str(key) for key in list(value)[:4]) + "}"
    return type(value).__name__
