"""Conversations: a row's messages, and their texts through the tokenizer's chat template."""

import datetime
import inspect
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from ..errors import DataError
from .columns import is_message
from .reasons import (
    EMPTY_PROMPT,
    IDENTICAL_SIDES,
    MISSING_PROMPT,
    NO_ASSISTANT_TURN,
    NO_COMMON_PROMPT,
    NOT_TEXT,
    TEMPLATE_REFUSED,
    Skip,
)
from .text import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

_NO_DATE = "no date is known for "
# Takes the place of the template's clock. It ends in a line break, which the template language drops.
_CALENDAR = (
    "{%- macro strftime_now(format) -%}"
    "{{ dates[format] if format in dates else raise_exception('" + _NO_DATE + "' ~ format) }}"
    "{%- endmacro %}\n"
)


class Dialogue(NamedTuple):
    """Messages of a prompt and of the two completions after it.

    ``continues``: the completions go on with the prompt's last message, which is the assistant's.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    continues: bool


class Rendered(NamedTuple):
    """The prompt's text and both whole dialogues' texts; the first is a prefix of the others."""

    prompt: str
    chosen: str
    rejected: str


def without_nulls(value: Any) -> Any:
    """``value`` without the keys that Arrow fills with None where a struct of another row has them."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(each) for each in value]
    return value


def read_dialogue(row: Mapping[str, Any]) -> Dialogue | Skip:
    """Find the prompt's and the completions' messages in a row.

    The prompt may be messages, a string (one user message), absent, or a string beside whole dialogues
    (then, as when absent, it is the messages that both sides begin with).
    """
    sides = []
    for name in ("chosen", "rejected"):
        side = _messages(row.get(name), name, "assistant")
        if isinstance(side, Skip):
            return side
        sides.append(side)
    chosen, rejected = sides
    if chosen == rejected:
        return Skip(IDENTICAL_SIDES)
    given = row.get("prompt")
    whole = [side[0]["role"] != "assistant" for side in sides]
    if given is None or given == [] or (isinstance(given, str) and any(whole)):
        # Strings cannot be whole dialogues: without a prompt, theirs is lost.
        if given is None and (isinstance(row["chosen"], str) or isinstance(row["rejected"], str)):
            return Skip(MISSING_PROMPT)
        return _named_if_empty(_split_common(chosen, rejected))
    prompt = _messages(given, "prompt", "user")
    if isinstance(prompt, Skip):
        return prompt
    if any(whole):
        if not all(side[: len(prompt)] == prompt and len(side) > len(prompt) for side in sides):
            return Skip(NO_COMMON_PROMPT)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
            return Skip(NO_ASSISTANT_TURN)
        return _named_if_empty(Dialogue(prompt, chosen, rejected, False))
    return _named_if_empty(Dialogue(prompt, chosen, rejected, _continues(prompt[-1], chosen[0], rejected[0])))


def _messages(value: Any, name: str, role: str) -> list[Message] | Skip:
    """``value`` as messages without nulls; a string is one message of ``role``."""
    if value is None:
        return Skip(f"missing {name}")
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else Skip(f"empty {name}")
    messages = without_nulls([value] if isinstance(value, dict) else value)
    if not isinstance(messages, list) or not all(is_message(each) for each in messages):
        return Skip(NOT_TEXT)
    if not all(isinstance(each.get("content", ""), (str, list)) for each in messages):
        return Skip(NOT_TEXT)
    return messages or Skip(f"empty {name}")


def _split_common(chosen: list[Message], rejected: list[Message]) -> Dialogue | Skip:
    """The prompt is what both dialogues begin with; at least the last message of each is its own."""
    longest = min(len(chosen), len(rejected)) - 1
    common = next((at for at in range(longest) if chosen[at] != rejected[at]), longest)
    roles = {chosen[common]["role"], rejected[common]["role"]}
    if roles != {"assistant"}:
        # They part before an answer: in what the person said, or where nobody answers.
        last_differs = common == len(chosen) - 1 == len(rejected) - 1 and "assistant" not in roles
        return Skip(NO_ASSISTANT_TURN if last_differs and common else NO_COMMON_PROMPT)
    if common == 0:
        return Skip(EMPTY_PROMPT)
    return Dialogue(chosen[:common], chosen[common:], rejected[common:], False)


def _named_if_empty(dialogue: Dialogue | Skip) -> Dialogue | Skip:
    """``dialogue``, or a Skip where one side says nothing at all."""
    if isinstance(dialogue, Skip):
        return dialogue
    for name in ("chosen", "rejected"):
        if not any(_says_something(message) for message in getattr(dialogue, name)):
            return Skip(f"empty {name}")
    return dialogue


def _says_something(message: Message) -> bool:
    rest = (value for key, value in message.items() if key not in ("role", "name"))
    return any(value.strip() if isinstance(value, str) else value for value in rest)


def _continues(last: Message, *firsts: Message) -> bool:
    both_text = all(isinstance(each.get("content"), str) for each in (last, *firsts))
    same_role = all(each["role"] == "assistant" for each in (last, *firsts))
    return both_text and same_role and "tool_calls" not in last


class ChatRenderer:
    """Renders dialogues through a chat template, the tokenizer's own unless one is given.

    ``today`` is what the template takes for today: a template that writes the date would make other tokens of
    the same data tomorrow.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat_template: str | None = None,
        today: datetime.date | None = None,
    ):
        """Raise DataError where there is no template."""
        if chat_template is None and not tokenizer.chat_template:
            raise DataError(
                "the data holds messages, but the tokenizer has no chat template; "
                "give one with --chat-template FILE (Jinja)"
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.today = today
        names = set(inspect.signature(tokenizer.apply_chat_template).parameters)
        self._not_for_rows = (names - {"documents"}) | {"messages", "strftime_now", "dates"}

    def __call__(self, row_number: int, row: Mapping[str, Any], dialogue: Dialogue) -> Rendered | Skip:
        """The three texts of a dialogue; ``tools`` and ``chat_template_kwargs`` of the row are handed on.

        Raises:
            DataError: a broken template, or one whose prompt is not a prefix of the whole dialogue.
        """
        try:
            options = self._options(row)
            prompt = self._render(dialogue.prompt, options, opens=True, continues=dialogue.continues)
            chosen = self._render(_joined(dialogue, dialogue.chosen), options)
            rejected = self._render(_joined(dialogue, dialogue.rejected), options)
        except jinja2.TemplateSyntaxError as error:
            line = error.lineno - (error.source or "").startswith(_CALENDAR)
            raise DataError(f"the chat template, line {line}: {error.message}; mend the template") from None
        # A template is a program of somebody else's, run on whatever the row holds.
        except Exception as error:
            if self.today is None and str(error).startswith(_NO_DATE):
                raise DataError(
                    "the chat template writes the date (strftime_now), so that the same data would give "
                    "other tokens tomorrow; name the day it shall write with --template-date YYYY-MM-DD"
                ) from None
            detail = " ".join(well_formed(str(error)).split()) or type(error).__name__
            return Skip(TEMPLATE_REFUSED, detail if len(detail) <= 120 else detail[:117] + "...")
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.startswith(prompt):
                raise _not_a_prefix(row_number, name, prompt, text)
        return Rendered(prompt, chosen, rejected)

    def _render(
        self,
        messages: list[Message],
        options: dict[str, Any],
        *,
        opens: bool = False,
        continues: bool = False,
    ) -> str:
        template = self.tokenizer.get_chat_template(self.chat_template, options.get("tools"))
        if "strftime_now" in template:
            template, options = self._dated(template, options)
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=opens and not continues,
            continue_final_message=continues,
            tokenize=False,
            **options,
        )
        assert isinstance(text, str)
        return text

    def _options(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the template; both columns may hold JSON text instead of structures."""
        options = _structure(row, "chat_template_kwargs") or {}
        tools = _structure(row, "tools")
        if not isinstance(options, dict):
            raise ValueError("chat_template_kwargs is not an object")
        options = {key: value for key, value in options.items() if key not in self._not_for_rows}
        return options | ({"tools": tools} if tools else {})

    def _dated(self, template: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The template with a calendar in place of its clock, and what it looks up there."""
        forms = re.findall(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1""", template)
        dates = {form: self.today.strftime(form) for _, form in forms} if self.today else {}
        return _CALENDAR + template, {**options, "dates": dates}


def _joined(dialogue: Dialogue, side: list[Message]) -> list[Message]:
    if not dialogue.continues:
        return dialogue.prompt + side
    last = dialogue.prompt[-1]
    merged = {**side[0], **last, "content": last["content"] + side[0]["content"]}
    return [*dialogue.prompt[:-1], merged, *side[1:]]


def _structure(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ValueError(f"{name} is text, but not JSON: {error}") from None
    return without_nulls(value)


def _not_a_prefix(row_number: int, name: str, prompt: str, text: str) -> DataError:
    at = next(
        (i for i, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(text)
    )
    return DataError(
        f"row {row_number}: the chat template renders the prompt otherwise once the {name} answer follows "
        f"({prompt[at : at + 20]!r} alone, {text[at : at + 20]!r} with it): where does the answer begin? "
        "Give a template that does not with --chat-template FILE, or set its switches in the column "
        "chat_template_kwargs (for example enable_thinking)"
    )
