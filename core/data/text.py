"""Plain-text rows: where the prompt ends and the two completions begin."""

import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from .columns import ASSISTANT, HUMAN, Form
from .reasons import IDENTICAL_SIDES, MISSING_PROMPT, NO_ASSISTANT_TURN, NO_COMMON_PROMPT, NOT_TEXT, Skip


class Texts(NamedTuple):
    """A prompt and the two completions that follow it; each whole text is ``prompt + side``."""

    prompt: str
    chosen: str
    rejected: str


def read_texts(row: Mapping[str, Any], form: Form) -> Texts | Skip:
    """The prompt and completions of a row of the form ``explicit``, ``implicit`` or ``hh``."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side is None:
            return Skip(f"missing {name}")
        if not isinstance(side, str):
            return Skip(NOT_TEXT)
        if not side.strip():
            return Skip(f"empty {name}")
    assert isinstance(chosen, str)
    assert isinstance(rejected, str)
    texts: Texts | Skip
    if form == "explicit":
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            return Skip(MISSING_PROMPT if prompt is None else NOT_TEXT)
        texts = Texts(prompt, chosen, rejected)
    elif form == "hh":
        texts = split_turns(chosen, rejected)
    else:
        texts = split_common(chosen, rejected)
    if isinstance(texts, Skip):
        return texts
    for name, side in (("chosen", texts.chosen), ("rejected", texts.rejected)):
        if not side.strip():
            return Skip(f"empty {name}")
    return Skip(IDENTICAL_SIDES) if texts.chosen == texts.rejected else texts


def split_turns(chosen: str, rejected: str) -> Texts | Skip:
    """Anthropic HH's dialogues: the prompt ends with the last "Assistant:" turn's mark.

    The completions keep their text as it is, the leading space included, as the original DPO code does.
    """
    ends = [text.rfind(ASSISTANT) + len(ASSISTANT) for text in (chosen, rejected)]
    if chosen.rfind(ASSISTANT) < 0 or chosen[: ends[0]] != rejected[: ends[1]]:
        return Skip(IDENTICAL_SIDES if chosen == rejected else NO_COMMON_PROMPT)
    texts = Texts(chosen[: ends[0]], chosen[ends[0] :], rejected[ends[1] :])
    # A dialogue that goes on with the person's words has no answer to compare.
    if HUMAN in texts.chosen or HUMAN in texts.rejected:
        return Skip(NO_ASSISTANT_TURN)
    return texts


def split_common(chosen: str, rejected: str) -> Texts | Skip:
    """The longest common beginning that ends between words and leaves both sides something to say."""
    if chosen == rejected:
        return Skip(IDENTICAL_SIDES)
    differ = (at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
    last = max(0, min(len(chosen.rstrip()), len(rejected.rstrip())) - 1)
    end = min(next(differ, last), last)
    while end > 0 and not _between_words(chosen[end - 1], chosen[end], rejected[end]):
        end -= 1
    if not chosen[:end].strip():
        return Skip(NO_COMMON_PROMPT)
    return Texts(chosen[:end], chosen[end:], rejected[end:])


def _between_words(before: str, *after: str) -> bool:
    """Whether texts may be cut between the letter ``before`` and those that come ``after`` it.

    Spaces go with the word after them, as tokenizers have it; a line break stays before the cut. Scripts
    written without spaces (Chinese, Japanese) may be cut after any of their letters and marks.
    """
    if before.isspace() or all(letter.isspace() for letter in after):
        return before != " "
    wide = unicodedata.east_asian_width(before) in "WF" and unicodedata.category(before)[0] in "LP"
    joined = any(unicodedata.category(letter)[0] == "M" or letter == "\u200d" for letter in after)
    return wide and not joined


def well_formed(text: str) -> str:
    """``text`` with lone surrogates, which neither Arrow nor a tokenizer can hold, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
