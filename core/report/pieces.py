"""Token ids as text to be shown: one piece a token, which read one after another are the decoded text."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

# What a decoder writes for bytes that are no character, or not yet one.
_REPLACEMENT = "\ufffd"
# Tokens before the first, for tokenizers that drop the space of whatever comes first.
_CONTEXT = 8
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def decode(tokenizer: Any, ids: Iterable[int]) -> str:
    """The text of ``ids`` as it is: special tokens in it, spaces untouched."""
    text: str = tokenizer.decode(
        [int(one) for one in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def token_pieces(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The text that each token adds, [T]; joined, what the tokens add to the text of those ``before``.

    A character whose bytes are spread over several tokens belongs to the last of them; the others are "".
    """
    every = [*before[-_CONTEXT:], *ids]
    start, read = 0, len(every) - len(ids)
    known = decode(tokenizer, every[:read])
    pieces = []
    for end in range(read + 1, len(every) + 1):
        text = decode(tokenizer, every[start:end])
        if text.endswith(_REPLACEMENT) and end < len(every):
            pieces.append("")
            continue
        pieces.append(text[len(known) :])
        start, read = read, end
        known = decode(tokenizer, every[start:read])
    return pieces


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that mean something else than their text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {index for index, token in added.items() if getattr(token, "special", False)}
    return frozenset(marked | set(tokenizer.all_special_ids))


def token_name(tokenizer: Any, index: int) -> str:
    """The text of a token that stands alone; of one that is a part of a character, its bytes: ``<F0 9F>``."""
    # Beside itself, so that the space it begins with is not taken for a text's first.
    text = token_pieces(tokenizer, [index], before=[index])[0]
    if _REPLACEMENT not in text and text:
        return text
    raw = tokenizer.convert_ids_to_tokens(int(index))
    found = _bytes_of(raw) if isinstance(raw, str) else b""
    try:
        return found.decode() or str(raw)
    except UnicodeDecodeError:
        return f"<{found.hex(' ').upper()}>"


def _bytes_of(raw: str) -> bytes:
    """The bytes of a token as a vocabulary spells it: byte fallback, or byte-level; empty for any other."""
    if (single := _BYTE.fullmatch(raw)) is not None:
        return bytes.fromhex(single[1])
    letters = _byte_letters()
    return bytes(letters[one] for one in raw) if all(one in letters for one in raw) else b""


@cache
def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
