"""Where a system prompt goes among the token ids of a cached prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError

# Words of users and of systems that begin and end with nothing in common.
_WORDS = ("Hello there", "7 mice?")
_SYSTEMS = ("Be brief.", "3 cats!", "(none)")

_INSTEAD = "contrast two models instead (--positive MODEL --negative MODEL)"


class PromptPlacer:
    """Puts a system prompt in front of cached prompts: the completions' tokens stay as they are.

    In plain text the prompt's own tokens go between BOS and the text. In conversations the chat template says
    where: it renders a message with and without a system message, and the tokens by which the two differ are
    what is put in, in place of the template's default where it has one. A conversation that begins with a
    system message of its own, or with tools, keeps it: the prompt and an empty line go before its text.

    Args:
        tokenizer: the cache's.
        text: the system prompt.
        conversational: whether the cache's prompts were rendered by a chat template.

    Raises:
        DataError: the template refuses system messages, ignores them, or sets them where tokens cannot tell.
    """

    def __init__(self, tokenizer: Any, text: str, *, conversational: bool):
        self._tokenizer = tokenizer
        if conversational:
            self._learn(text)
            return
        bos = tokenizer.bos_token_id
        self._start = self._after = self._guard = [] if bos is None else [bos]
        self._inserted = self._before_own = self._ids(text)
        self._own: list[int] = []

    def _learn(self, text: str) -> None:
        """Find the place in what the template makes of probes."""
        plain = [self._rendered(None, words) for words in _WORDS]
        asked = self._rendered(text, _WORDS[0])
        if asked == plain[0]:
            raise DataError(f"the chat template ignores system messages: {_INSTEAD}")
        start = _shared(plain[0], asked)
        end = min(_shared(plain[0][::-1], asked[::-1]), len(plain[0]) - start, len(asked) - start)
        self._start, self._inserted = asked[:start], asked[start : len(asked) - end]
        # What goes on after the prompt comes after the template's default system message, where it has one.
        self._after = plain[0][: len(plain[0]) - end]
        # What every conversation without a system message begins with.
        self._guard = plain[0][: _shared(*plain)]
        if len(self._after) > len(self._guard):
            raise DataError(
                "the chat template sets the system message among the user's words, where tokens cannot tell "
                f"them apart: {_INSTEAD}"
            )
        # What every conversation with a system message begins with.
        self._own = asked[: min(_shared(asked, self._rendered(system, _WORDS[0])) for system in _SYSTEMS)]
        self._before_own = self._before(text)

    def _before(self, text: str) -> list[int]:
        """The tokens of ``text`` and an empty line as they are within a system message."""
        asked = [self._rendered(f"{text}\n\n{system}", _WORDS[0]) for system in _SYSTEMS]
        common = asked[0][: min(_shared(asked[0], other) for other in asked[1:])]
        within = common[len(self._own) :]
        # Where the line merges with every word that follows, it is taken by itself.
        whole = self._tokenizer.decode(within) == f"{text}\n\n"
        return within if whole else self._ids(f"{text}\n\n")

    @property
    def added(self) -> int:
        """Tokens by which a prompt grows, at most."""
        return max(len(self._inserted) - len(self._after) + len(self._start), len(self._before_own))

    def __call__(self, prompt_ids: NDArray[np.int32]) -> NDArray[np.int32] | None:
        """``prompt_ids`` with the system prompt, or None where they do not begin as the template has it."""
        ids = prompt_ids.tolist()
        own, without = self._begins(ids, self._own), self._begins(ids, self._guard)
        # One may begin the other: the longer one tells.
        if own and (len(self._own) > len(self._guard) or not without):
            parts = [ids[: len(self._own)], self._before_own, ids[len(self._own) :]]
        elif without:
            parts = [ids[: len(self._start)], self._inserted, ids[len(self._after) :]]
        else:
            return None
        return np.asarray([token for part in parts for token in part], dtype=np.int32)

    @staticmethod
    def _begins(ids: list[int], opening: list[int]) -> bool:
        return ids[: len(opening)] == opening

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _rendered(self, system: str | None, user: str) -> list[int]:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"the chat template refuses a system message ({_one_line(error)}): {_INSTEAD}"
            ) from error
        return self._ids(text)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
