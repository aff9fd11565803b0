"""One row of preference data to one pair of token ids, or the reason why not."""

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from ...cache.pairs import Pair
from ..errors import DataError
from .chat import ChatRenderer, read_dialogue
from .columns import Form
from .encoding import Encoded, Encoder, fit
from .reasons import NOT_TEXT, OVER_LENGTH, REASONS, Skip
from .text import read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["REASONS", "TRUNCATE", "TRUNCATION", "PairMaker", "Skip"]

TRUNCATION = ("error", "drop", "keep_start", "keep_end")
TRUNCATE = ("prompt", "completion")


class PairMaker:
    """Turns rows into pairs: ``maker(row_number, row) -> Pair | Skip``.

    Plain text ends in EOS; conversations hold just the tokens that the chat template gives, so that prompt
    plus side equals the tokenised whole dialogue.

    Args:
        tokenizer: a transformers tokenizer.
        form: the rows' form, as :func:`~tdpo.core.data.source.open_source` found it.
        max_length: most tokens of the prompt and the longer completion together; None for no limit.
        truncation: what to do with longer rows: ``error``, ``drop``, ``keep_start`` or ``keep_end``.
        truncate: which part ``keep_start`` and ``keep_end`` shorten: ``prompt`` or ``completion``.
        chat_template: a Jinja template in place of the tokenizer's.
        vocab_size: tokens that the model knows; None for no limit.
        today: what a chat template that writes the date takes for today.

    Raises:
        DataError: an unknown choice, no chat template for conversations; when called, what must stop the
            build: a row over length with ``error``, a broken template, no EOS token for plain text, a token
            that the model does not know.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        form: Form,
        *,
        max_length: int | None,
        truncation: str = "drop",
        truncate: str = "prompt",
        chat_template: str | None = None,
        vocab_size: int | None = None,
        today: datetime.date | None = None,
    ):
        for name, value, known in (
            ("form", form, get_args(Form)),
            ("truncation", truncation, TRUNCATION),
            ("truncate", truncate, TRUNCATE),
        ):
            if value not in known:
                raise DataError(f"{name} is {value!r}: choose one of {', '.join(known)}")
        if max_length is not None and max_length < 2:
            raise DataError(f"max_length is {max_length}: a prompt and a completion take at least 2 tokens")
        self.form: Form = form
        self.max_length = max_length
        self.truncation = truncation
        self.truncate = truncate
        self.vocab_size = vocab_size
        self._encoder = Encoder(tokenizer)
        self._render = ChatRenderer(tokenizer, chat_template, today) if form == "conversational" else None

    def __call__(self, row_number: int, row: Mapping[str, Any]) -> Pair | Skip:
        """The pair in ``row``; ``row_number`` is its index in the source data."""
        try:
            sides = self._encode(row_number, row)
        except RecursionError:
            return Skip(NOT_TEXT, "nested too deeply")
        if isinstance(sides, Encoded):
            sides = self._within_length(row_number, sides)
        if isinstance(sides, Skip):
            return sides
        self._check_ids(row_number, sides)
        return Pair.make(row_number, *sides)

    def _check_ids(self, row_number: int, sides: Encoded) -> None:
        largest = max(int(ids.max()) for ids in sides)
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise DataError(
                f"row {row_number}: the tokenizer gives the token id {largest}, and the model knows those "
                f"below {self.vocab_size}; use the tokenizer that the model was trained with"
            )

    def _encode(self, row_number: int, row: Mapping[str, Any]) -> Encoded | Skip:
        if self._render is None:
            texts = read_texts(row, self.form)
            return texts if isinstance(texts, Skip) else self._encoder.encode_texts(texts)
        dialogue = read_dialogue(row)
        if isinstance(dialogue, Skip):
            return dialogue
        rendered = self._render(row_number, row, dialogue)
        return rendered if isinstance(rendered, Skip) else self._encoder.encode_rendered(rendered)

    def _within_length(self, row_number: int, sides: Encoded) -> Encoded | Skip:
        length = len(sides.prompt) + max(len(sides.chosen), len(sides.rejected))
        if self.max_length is None or length <= self.max_length:
            return sides
        if self.truncation == "error":
            raise DataError(
                f"row {row_number}: {length} tokens, more than --max-length {self.max_length}; "
                "raise it, or choose --truncation drop, keep_start or keep_end"
            )
        if self.truncation == "drop":
            return Skip(OVER_LENGTH)
        return fit(sides, self.max_length, self.truncation, self.truncate, self._encoder.bos)
