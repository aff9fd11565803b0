"""Token ids of a prompt and its two completions: the boundary, BOS and EOS, the length limit."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chat import Rendered
from .reasons import EMPTY_PROMPT, IDENTICAL_SIDES, OVER_LENGTH, Skip
from .text import Texts, well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]


class Encoded(NamedTuple):
    """Token ids, each int32 [T] with T >= 1: what the model sees is ``prompt`` followed by a side."""

    prompt: Ids
    chosen: Ids
    rejected: Ids


class Encoder:
    """Tokenises whole texts and finds the prompt among their tokens.

    The boundary is never drawn in the text: the prompt's tokens are the longest common token prefix of the
    prompt alone and the two whole texts. A token that grows across the boundary belongs to the completion,
    and prompt plus side is just what the tokenizer makes of the whole text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.prefix, self.suffix = self._added()

    def _added(self) -> tuple[list[int], list[int]]:
        """Tokens that the tokenizer itself puts before and after a text."""
        plain, full = self._ids(["a"], special=False)[0], self._ids(["a"], special=True)[0]
        for start in range(len(full) - len(plain) + 1):
            if plain and full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
        end = [token for token in full[-1:] if token == self.eos and token != self.bos]
        return [token for token in full[:1] if token == self.bos], end

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        batch = self.tokenizer(
            [well_formed(text) for text in texts],
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    def encode_texts(self, texts: Texts) -> Encoded | Skip:
        """Plain text: BOS as the tokenizer adds it, but once; EOS at the end of each completion, once.

        Raises:
            DataError: the tokenizer has no EOS token.
        """
        if self.eos is None:
            raise DataError(
                "the tokenizer has no eos_token, with which plain-text completions must end; "
                "set eos_token in its tokenizer_config.json"
            )
        whole = [texts.prompt, texts.prompt + texts.chosen, texts.prompt + texts.rejected]
        prompt, chosen, rejected = (self._without_doubles(ids) for ids in self._ids(whole, special=True))
        if self.suffix and prompt[-len(self.suffix) :] == self.suffix:
            prompt = prompt[: -len(self.suffix)]
        sides = [ids if ids[-1:] == [self.eos] else [*ids, self.eos] for ids in (chosen, rejected)]
        shared = _shared(prompt, *sides)
        # Where a side's own text gave no token, only its EOS is left.
        for name, ids in zip(("chosen", "rejected"), sides, strict=True):
            if len(ids) <= shared or ids[shared:] == [self.eos]:
                return Skip(f"empty {name}")
        if shared == 0:
            if self.bos is None:
                return Skip(EMPTY_PROMPT)
            sides, shared = [[self.bos, *ids] for ids in sides], 1
        return _checked(sides[0][:shared], sides[0][shared:], sides[1][shared:])

    def encode_rendered(self, rendered: Rendered) -> Encoded | Skip:
        """Rendered dialogues: the template has written every special token; none is added."""
        prompt, chosen, rejected = self._ids(list(rendered), special=False)
        shared = _shared(prompt, chosen, rejected)
        for name, ids in (("chosen", chosen), ("rejected", rejected)):
            if len(ids) <= shared:
                return Skip(f"empty {name}")
        if shared == 0:
            return Skip(EMPTY_PROMPT)
        return _checked(chosen[:shared], chosen[shared:], rejected[shared:])

    def _without_doubles(self, ids: list[int]) -> list[int]:
        """``ids`` without the BOS or EOS that the tokenizer added to a text that had its own."""
        if self.bos is not None and self.prefix[-1:] == [self.bos]:
            at = len(self.prefix)
            if ids[at : at + 1] == [self.bos]:
                ids = ids[:at] + ids[at + 1 :]
        if self.suffix == [self.eos] and ids[-2:] == [self.eos, self.eos]:
            ids = ids[:-1]
        return ids


def fit(sides: Encoded, max_length: int, keep: str, truncate: str, bos: int | None) -> Encoded | Skip:
    """Shorten the prompt or the completions to ``max_length`` tokens, prompt and longer side together.

    ``keep`` is ``keep_start`` or ``keep_end``, ``truncate`` is ``prompt`` or ``completion``. Nothing is
    emptied: what cannot fit is skipped. A prompt that begins with BOS keeps it.
    """
    prompt, chosen, rejected = sides
    longer = max(len(chosen), len(rejected))
    room = max_length - (longer if truncate == "prompt" else len(prompt))
    if room < 1:
        return Skip(OVER_LENGTH)
    if truncate == "completion":
        return _checked(prompt, _cut(chosen, room, keep), _cut(rejected, room, keep))
    if keep == "keep_end" and len(prompt) > room and prompt[0] == bos:
        prompt = np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
    return _checked(_cut(prompt, room, keep), chosen, rejected)


def _cut(ids: Ids, room: int, keep: str) -> Ids:
    return ids[:room] if keep == "keep_start" else ids[-room:]


def _checked(prompt: list[int] | Ids, chosen: list[int] | Ids, rejected: list[int] | Ids) -> Encoded | Skip:
    encoded = Encoded(*(np.asarray(ids, dtype=np.int32) for ids in (prompt, chosen, rejected)))
    return Skip(IDENTICAL_SIDES) if np.array_equal(encoded.chosen, encoded.rejected) else encoded


def _shared(first: list[int], *others: list[int]) -> int:
    """Length of the longest prefix that all have."""
    for at, tokens in enumerate(zip(first, *others, strict=False)):
        if any(token != tokens[0] for token in tokens):
            return at
    return min(len(first), *(len(other) for other in others))
