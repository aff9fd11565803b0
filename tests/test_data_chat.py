"""Conversations become the tokens that the chat template gives for the whole dialogue."""

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tdpo.cache.pairs import Pair
from tdpo.core.data.chat import read_dialogue, without_nulls
from tdpo.core.data.pairing import REASONS, PairMaker, Skip
from tdpo.core.errors import DataError

CHATML = """{%- if tools %}<|im_start|>tools
{{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Past answers lose their thoughts; the last one, and the generation prompt when thinking is off, show them.
THINKING = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>{{ m.thinking | default('') }}</think>{% endif -%}
{{ m.content }}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% if opened is defined %}{{ opened }}{% endif %}{% endif %}"""

STRICT = (
    """{%- if messages[0].role == 'system' %}{{ raise_exception('no system\nrole') }}{% endif %}""" + CHATML
)


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["user assistant system the answer is\n\nyes or no, <think>\n"] * 9, trainer
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": special[1:]})
    made.chat_template = template
    return made


TOKENIZER = chat_tokenizer(CHATML)


def message(role: str, content: str | None, **more) -> dict:
    return {"role": role, "content": content, **more}


def user(content="what is it?"):
    return message("user", content)


def answer(content, **more):
    return message("assistant", content, **more)


def make(row: dict, template: str | None = None, **options) -> Pair | Skip:
    return PairMaker(TOKENIZER, "conversational", max_length=None, chat_template=template, **options)(3, row)


def reason(made: Pair | Skip) -> str:
    assert isinstance(made, Skip), made
    assert made.reason in REASONS
    return made.reason


def whole(messages: list[dict], template: str | None = None, **options) -> list[int]:
    return TOKENIZER.apply_chat_template(messages, chat_template=template, tokenize=True, **options)[
        "input_ids"
    ]


def opened(messages: list[dict], **options) -> list[int]:
    return whole(messages, add_generation_prompt=True, **options)


# Layouts of the same pair


PROMPT = [message("system", "be brief"), user()]
YES, NO = answer("yes"), answer("no, it is not")
LAYOUTS = {
    "messages": {"prompt": PROMPT, "chosen": [YES], "rejected": [NO]},
    "strings beside messages": {"prompt": PROMPT, "chosen": YES["content"], "rejected": NO["content"]},
    "single messages": {"prompt": PROMPT, "chosen": YES, "rejected": NO},
    "implicit": {"chosen": [*PROMPT, YES], "rejected": [*PROMPT, NO]},
    "whole dialogues beside a string": {
        "prompt": "what is it?",
        "chosen": [*PROMPT, YES],
        "rejected": [*PROMPT, NO],
    },
    "whole dialogues beside the prompt": {
        "prompt": PROMPT,
        "chosen": [*PROMPT, YES],
        "rejected": [*PROMPT, NO],
    },
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_pair(row):
    made = make(row)
    assert made.prompt_ids.tolist() == opened(PROMPT)
    assert [*made.prompt_ids, *made.chosen_ids] == whole([*PROMPT, YES])
    assert [*made.prompt_ids, *made.rejected_ids] == whole([*PROMPT, NO])
    assert made.row == 3


def test_a_string_prompt_is_the_users_message():
    made = make({"prompt": "why?", "chosen": [YES], "rejected": [NO]})
    assert made.prompt_ids.tolist() == opened([user("why?")])


def test_nothing_is_appended_to_what_the_template_gives():
    made = make(LAYOUTS["messages"])
    assert TOKENIZER.decode(made.chosen_ids) == "yes<|im_end|>\n"
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    made = make(LAYOUTS["messages"], bare)
    assert [*made.prompt_ids, *made.chosen_ids] == whole([*PROMPT, YES], bare)


content = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["<|im_end|>", " yes ", "\n", "🙂\u200d"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(content, min_size=1, max_size=4), content, content)
def test_each_side_equals_the_tokenised_whole_dialogue(turns, one, other):
    prompt = [
        message("user" if (len(turns) - at) % 2 else "assistant", text) for at, text in enumerate(turns)
    ]
    made = make({"prompt": prompt, "chosen": [answer(one)], "rejected": [answer(other)]})
    if isinstance(made, Skip):
        assert made.reason in ("identical sides", "empty chosen", "empty rejected")
        return
    for text, ids in ((one, made.chosen_ids), (other, made.rejected_ids)):
        rendered = TOKENIZER.apply_chat_template([*prompt, answer(text)], tokenize=False)
        sound = rendered.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert [*made.prompt_ids, *ids] == TOKENIZER(sound, add_special_tokens=False)["input_ids"]
        assert len(ids) > 0


def test_a_token_that_grows_across_the_boundary_belongs_to_the_completion():
    joined = (
        "{% for m in messages %} {{ 'ans' if m.role == 'assistant' else 'the' }}{{ m.content }}{% endfor %}"
    )
    joined += "{% if add_generation_prompt %} ans{% endif %}"
    assert len(TOKENIZER(" answer")["input_ids"]) == 1
    made = make({"prompt": [user(" is")], "chosen": [answer("wer")], "rejected": [answer(" no")]}, joined)
    assert [TOKENIZER.decode(ids) for ids in (made.prompt_ids, made.chosen_ids, made.rejected_ids)] == [
        " the is",
        " answer",
        " ans no",
    ]


# Prompts that end with the assistant


def test_a_prompt_that_ends_with_the_assistant_is_continued():
    begun = [user(), answer("The answer is")]
    made = make({"prompt": begun, "chosen": [answer(" yes")], "rejected": [answer(" no")]})
    assert TOKENIZER.decode(made.prompt_ids).endswith("assistant\nThe answer is")
    assert [*made.prompt_ids, *made.chosen_ids] == whole([user(), answer("The answer is yes")])


def test_whole_messages_that_follow_the_assistant_are_messages_of_their_own():
    begun = [user(), answer("wait")]
    made = make({"chosen": [*begun, YES], "rejected": [*begun, NO]})
    assert made.prompt_ids.tolist() == opened(begun)
    assert [*made.prompt_ids, *made.chosen_ids] == whole([*begun, YES])


def test_completions_of_several_messages_are_taken_whole():
    steps = [answer("", tool_calls=[{"function": {"name": "f"}}]), message("tool", "3"), answer("three")]
    made = make({"prompt": PROMPT, "chosen": steps, "rejected": [NO]})
    assert [*made.prompt_ids, *made.chosen_ids] == whole([*PROMPT, *steps])


# Templates


def test_tools_and_template_switches_are_handed_on():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}]
    for given_tools in (
        tools,
        '[{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}]',
    ):
        made = make(LAYOUTS["messages"] | {"tools": given_tools})
        assert [*made.prompt_ids, *made.chosen_ids] == whole([*PROMPT, YES], tools=tools)
    row = {
        "prompt": [user()],
        "chosen": [YES],
        "rejected": [NO],
        "chat_template_kwargs": {"opened": "<think></think>"},
    }
    made = make(row, THINKING)
    assert TOKENIZER.decode(made.prompt_ids).endswith("<think></think>")
    assert [*made.prompt_ids, *made.chosen_ids] == whole([user(), YES], THINKING)


def test_switches_cannot_turn_tokenising_on():
    options = {"tokenize": True, "add_generation_prompt": False}
    assert make(LAYOUTS["messages"] | {"chat_template_kwargs": options}) == make(LAYOUTS["messages"])


def test_a_thinking_template_puts_thoughts_into_the_completion():
    made = make({"prompt": [user()], "chosen": [answer("yes", thinking="hm")], "rejected": [NO]}, THINKING)
    assert TOKENIZER.decode(made.chosen_ids) == "<think>hm</think>yes<|im_end|>\n"


def test_a_prompt_that_is_not_a_prefix_stops_the_build_in_one_line():
    row = {
        "prompt": [user()],
        "chosen": [YES],
        "rejected": [NO],
        "chat_template_kwargs": {"opened": "<think>\n"},
    }
    with pytest.raises(DataError) as caught:
        make(row, THINKING)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        "row 3: the chat template renders the prompt otherwise once the chosen answer follows"
    )
    assert "--chat-template" in message


def test_data_of_messages_needs_a_template():
    with pytest.raises(DataError, match="no chat template; give one with --chat-template"):
        PairMaker(chat_tokenizer(None), "conversational", max_length=None)
    PairMaker(chat_tokenizer(None), "conversational", max_length=None, chat_template=CHATML)


def test_a_broken_template_stops_the_build():
    with pytest.raises(DataError, match="the chat template, line 1: "):
        make(LAYOUTS["messages"], "{% for m in messages %}{{ m.content }}")


def test_what_the_template_refuses_is_skipped_with_its_words():
    made = make(LAYOUTS["messages"], STRICT)
    assert made == Skip("refused by the chat template", "no system role")
    assert isinstance(make({"prompt": "q", "chosen": [YES], "rejected": [NO]}, STRICT), Pair)


# Reasons to skip


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": PROMPT, "chosen": None, "rejected": [NO]}, "missing chosen"),
        ({"prompt": PROMPT, "chosen": [YES], "rejected": None}, "missing rejected"),
        ({"prompt": None, "chosen": "yes", "rejected": "no"}, "missing prompt"),
        ({"prompt": PROMPT, "chosen": [], "rejected": [NO]}, "empty chosen"),
        ({"prompt": PROMPT, "chosen": [YES], "rejected": [answer(" ")]}, "empty rejected"),
        ({"prompt": PROMPT, "chosen": [YES], "rejected": [answer(None)]}, "empty rejected"),
        ({"prompt": "", "chosen": [YES], "rejected": [NO]}, "empty prompt"),
        ({"chosen": [YES], "rejected": [NO]}, "empty prompt"),
        ({"prompt": PROMPT, "chosen": 5, "rejected": [NO]}, "not text"),
        ({"prompt": PROMPT, "chosen": ["yes"], "rejected": [NO]}, "not text"),
        ({"prompt": PROMPT, "chosen": [answer(5)], "rejected": [NO]}, "not text"),
        ({"prompt": [{"from": "human"}], "chosen": [YES], "rejected": [NO]}, "not text"),
        ({"prompt": PROMPT, "chosen": [YES], "rejected": [YES]}, "identical sides"),
        ({"chosen": [*PROMPT, YES], "rejected": [*PROMPT, YES]}, "identical sides"),
        ({"chosen": [user("a"), YES], "rejected": [user("b"), NO]}, "no common prompt"),
        (
            {"chosen": [user(), YES, user("a"), YES], "rejected": [user(), YES, user("b"), YES]},
            "no common prompt",
        ),
        ({"prompt": [user("a")], "chosen": [*PROMPT, YES], "rejected": [*PROMPT, NO]}, "no common prompt"),
        ({"chosen": [*PROMPT, YES, user("a")], "rejected": [*PROMPT, YES, user("b")]}, "no assistant turn"),
        ({"prompt": PROMPT, "chosen": [*PROMPT, user("a")], "rejected": [*PROMPT, NO]}, "no assistant turn"),
    ],
)
def test_unusable_conversations_are_skipped(row, why):
    assert reason(make(row)) == why


def test_sides_that_the_template_makes_identical_are_skipped():
    row = {"prompt": PROMPT, "chosen": [answer("yes", mood="glad")], "rejected": [answer("yes", mood="sad")]}
    assert reason(make(row)) == "identical sides"


def test_a_template_that_shows_no_answer_leaves_nothing_to_learn():
    assert reason(make(LAYOUTS["messages"], "{{ messages[0].content }}")) == "empty chosen"
    assert (
        reason(make(LAYOUTS["messages"], "{% if messages[2] %}{{ messages[2].content }}{% endif %}"))
        == "empty prompt"
    )


# Arrow's nulls


def test_nulls_are_stripped_from_nested_messages():
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    rows = [
        {"prompt": [user()], "chosen": [answer("", tool_calls=calls)], "rejected": [NO]},
        {"prompt": [{**user(), "name": "bob"}], "chosen": [YES], "rejected": [answer("hm", thinking="hm")]},
    ]
    table = datasets.Dataset.from_list(rows)
    for row, stored in zip(rows, table, strict=True):
        assert without_nulls(stored) == row
        assert make(stored) == make(row)


def test_nulls_inside_lists_stay():
    assert without_nulls({"enum": ["a", None], "x": None, "y": ({"z": None},)}) == {
        "enum": ["a", None],
        "y": [{}],
    }


def test_an_implicit_prompt_leaves_each_side_its_last_message():
    dialogue = read_dialogue({"chosen": [user(), YES], "rejected": [user(), YES, user("and?"), NO]})
    assert dialogue.prompt == [user()]
    assert dialogue.chosen == [YES]
