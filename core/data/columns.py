"""Columns of preference data: naming them the way tdpo does, and telling which form the rows have."""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ..errors import DataError

Form = Literal["explicit", "implicit", "conversational", "hh"]
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

_LOOKED_AT = 1000
_SAMPLE = 100


def column_names(
    found: Sequence[str], column_map: Mapping[str, str], where: str, *, complete: bool = True
) -> dict[str, str]:
    """The columns that tdpo uses: its own name for each, and the data's.

    Args:
        found: the data's columns.
        column_map: tdpo's name mapped to the data's: ``{"prompt": "question"}``.
        where: the data's name, for messages.
        complete: whether ``found`` is all that there is; a stream may show an optional column late.

    Raises:
        DataError: a name that tdpo does not know, a column that the data lacks, no ``chosen`` or
            ``rejected``.
    """
    found = list(found)
    for ours, theirs in column_map.items():
        if ours not in COLUMNS:
            raise DataError(
                f"--column-map {ours}={theirs}: tdpo has no column {ours!r}{_nearest(ours, COLUMNS)}; "
                f"it knows {_listed(list(COLUMNS))}"
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
    if not complete:
        late = {name: name for name in COLUMNS if name not in names and name not in names.values()}
        names |= late
    return names


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")


def detect_form(rows: Iterable[Mapping[str, Any]], where: str) -> Form:
    """The form of the data, told from the first rows that have both sides.

    Raises:
        DataError: no row among the first thousand holds text or messages on both sides.
    """
    sample: list[Mapping[str, Any]] = []
    first: Mapping[str, Any] = {}
    looked_at = 0
    for row in itertools.islice(rows, _LOOKED_AT):
        first = first or row
        looked_at += 1
        if _usable(row.get("chosen")) and _usable(row.get("rejected")):
            sample.append(row)
        if len(sample) == _SAMPLE:
            break
    if looked_at == 0:
        raise DataError(f"{where}: no rows; give data with at least one row")
    if not sample:
        raise DataError(
            f"{where}: none of the first {looked_at} rows has text or messages on both sides (row 0: "
            f"'chosen' is {_kind(first.get('chosen'))}, 'rejected' is {_kind(first.get('rejected'))}); "
            "messages are lists of {role, content}; other columns can be named with --column-map"
        )
    return _form_of(sample)


def _form_of(sample: Sequence[Mapping[str, Any]]) -> Form:
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
        return "{" + ", ".join(repr(str(key))[1:-1] for key in list(value)[:4]) + "}"
    return type(value).__name__
