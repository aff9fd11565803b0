"""Whatever a row holds, it gives a sound pair, one of the documented reasons to skip it, or one line."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from chat_templates import TEMPLATES, byte_bpe, unigram
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.cache.errors import TdpoError
from tdpo.cache.pairs import Pair, pair_id
from tdpo.core.data.pairing import REASONS, PairMaker, Skip
from tdpo.core.data.source import open_source
from tdpo.core.data.spool import spool_pairs

TOKENIZERS = {"byte BPE": byte_bpe(), "unigram": unigram()}
FORMS = ("explicit", "implicit", "conversational", "hh")
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")

text = st.sampled_from(
    [
        "",
        " ",
        "yes",
        "no",
        "The answer is",
        "\n\nHuman: hi\n\nAssistant: yes",
        "\n\nHuman: hi\n\nAssistant: no",
        "</think>",
        "</s>",
        "[1]",
        "{}",
        "\ud83d",
    ]
) | st.text(st.characters(codec=None), max_size=12)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
json_value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
anything = json_value | st.lists(st.fixed_dictionaries({"role": text, "content": json_value}), max_size=3)
switches = st.dictionaries(
    st.sampled_from(
        [
            "add_generation_prompt",
            "bos_token",
            "chat_template",
            "continue_final_message",
            "conversation",
            "documents",
            "enable_thinking",
            "messages",
            "padding",
            "return_dict",
            "sanitize_control_tokens",
            "self",
            "strftime_now",
            "tokenize",
        ]
    ),
    json_value,
    max_size=3,
)


def spoiled(draw, row: dict) -> dict:
    """``row`` with up to two of its fields, or of its messages' fields, replaced by anything."""
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        name = draw(st.sampled_from([*row, "prompt", "tools", "chat_template_kwargs"]))
        inner = row.get(name)
        if inner and isinstance(inner, list) and isinstance(inner[-1], dict) and draw(st.booleans()):
            at = draw(st.integers(0, len(inner) - 1))
            field = draw(st.sampled_from(["role", "content", "name", "tool_calls", "reasoning_content", "x"]))
            changed = {**inner[at], field: draw(json_value)}
            row = {**row, name: [*inner[:at], changed, *inner[at + 1 :]]}
        else:
            row = {**row, name: draw(anything)}
    return row


@st.composite
def rows_of_text(draw, form):
    """Rows that are nearly sound, of the form."""
    prompt, chosen, rejected = draw(text), "yes" + draw(text), draw(text) + " it is"
    if form == "explicit":
        return spoiled(draw, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if form == "hh":
        prompt += draw(st.sampled_from(["\n\nHuman: hi\n\nAssistant:"] * 3 + ["\n\nHuman: hi"]))
    return spoiled(draw, {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"})


@st.composite
def rows_of_messages(draw):
    """Rows that are nearly sound, of all layouts."""
    roles = itertools.cycle(["user", "assistant"])
    turns = draw(st.sampled_from([1, 1, 1, 2, 3]))
    prompt = [{"role": role, "content": draw(text)} for role in itertools.islice(roles, turns)]
    if draw(st.booleans()):
        prompt = [{"role": "system", "content": draw(text)}, *prompt]
    sides = [{"role": "assistant", "content": start + draw(text)} for start in ("", "yes")]
    layout = draw(st.sampled_from(["explicit", "strings", "single", "implicit", "string and whole"]))
    if layout == "explicit":
        row = {"prompt": prompt, "chosen": sides[:1], "rejected": sides[1:]}
    elif layout == "strings":
        row = {"prompt": prompt, "chosen": sides[0]["content"], "rejected": sides[1]["content"]}
    elif layout == "single":
        row = {"prompt": prompt[-1]["content"], "chosen": sides[0], "rejected": sides[1]}
    else:
        row = {"chosen": [*prompt, sides[0]], "rejected": [*prompt, sides[1]]}
        row |= {"prompt": prompt[-1]["content"]} if layout == "string and whole" else {}
    if draw(st.integers(0, 3)) == 0:
        row["chat_template_kwargs"] = draw(switches)
    return spoiled(draw, row)


def is_sound(made: Pair, number: int, vocabulary: int) -> bool:
    lists = (made.prompt_ids, made.chosen_ids, made.rejected_ids)
    return (
        made.row == number
        and all(ids.dtype == np.int32 and len(ids) > 0 for ids in lists)
        and all(ids.min() >= 0 and ids.max() < vocabulary for ids in lists)
        and not np.array_equal(made.chosen_ids, made.rejected_ids)
        and made.pair_id == pair_id(*lists)
    )


def assert_documented(maker: PairMaker, row: dict, tokenizer) -> str:
    try:
        made = maker(7, row)
    except TdpoError as error:
        said = str(error)
        made = None
    else:
        said = made.detail if isinstance(made, Skip) else ""
    assert "\n" not in said
    said.encode()
    if isinstance(made, Pair):
        assert is_sound(made, 7, len(tokenizer))
    elif isinstance(made, Skip):
        assert made.reason in REASONS
    return {Pair: "pair", Skip: "skip"}.get(type(made), "error")


def assert_that_most_of_it_happened(seen: Counter) -> None:
    """What is never reached is not tested."""
    total = sum(seen.values())
    assert seen["pair"] > 0.05 * total, seen
    assert seen["skip"] > 0.05 * total, seen


@pytest.mark.parametrize("form", [form for form in FORMS if form != "conversational"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_row_of_text_is_sound_or_skipped(form, name):
    tokenizer, seen = TOKENIZERS[name], Counter()

    @settings(max_examples=200, deadline=None)
    @given(
        rows_of_text(form),
        st.sampled_from(["drop", "error", "keep_start", "keep_end"]),
        st.sampled_from(["prompt", "completion"]),
        st.sampled_from([2, 12, None, None]),
    )
    def check(row, truncation, truncate, max_length):
        maker = PairMaker(tokenizer, form, max_length=max_length, truncation=truncation, truncate=truncate)
        seen[assert_documented(maker, row, tokenizer)] += 1

    check()
    assert_that_most_of_it_happened(seen)


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_row_of_messages_is_sound_or_skipped(template):
    seen = Counter()
    makers = [
        (
            PairMaker(tokenizer, "conversational", max_length=None, chat_template=TEMPLATES[template]),
            tokenizer,
        )
        for tokenizer in TOKENIZERS.values()
    ]

    @settings(max_examples=250, deadline=None)
    @given(rows_of_messages())
    def check(row):
        for maker, tokenizer in makers:
            seen[assert_documented(maker, row, tokenizer)] += 1

    check()
    assert_that_most_of_it_happened(seen)


HOSTILE = {
    "calls what is not there": "{{ messages.nothing.at.all() }}",
    "divides by nothing": "{{ 1 // 0 }}",
    "adds what cannot be added": "{{ messages + 1 }}",
    "asks for too much": "{{ 'x' * 10 ** 19 }}",
    "never ends": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "breaks out": "{{ ''.__class__.__mro__ }}",
    "formats nothing": "{{ '%d' % 'x' }}",
    "imports": "{% include 'x' %}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_any_template_is_refused_row_by_row(template):
    maker = PairMaker(TOKENIZERS["byte BPE"], "conversational", max_length=None, chat_template=template)
    made = maker(0, {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"})
    assert isinstance(made, Skip)
    assert made.reason == "refused by the chat template"
    assert made.detail


def test_rows_nested_beyond_reason_are_skipped():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    maker = PairMaker(
        TOKENIZERS["byte BPE"], "conversational", max_length=None, chat_template=TEMPLATES["tools"]
    )
    answers = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}
    assert maker(0, {"prompt": deep, **answers}).reason == "not text"
    for column in ("tools", "chat_template_kwargs"):
        made = maker(0, {"prompt": "q", **answers, column: "[" * 100_000})
        assert made.reason == "refused by the chat template"


@pytest.mark.parametrize("kind", ["list", "stream", "file", "streamed file"])
def test_any_data_set_gives_sound_pairs_or_one_line(tmp_path_factory, kind):
    tokenizer, seen = TOKENIZERS["byte BPE"], Counter()
    path = tmp_path_factory.mktemp("any") / "a.jsonl"

    def pairs_of(rows, options):
        data = {"list": rows, "stream": iter(rows)}.get(kind, path)
        if data is path:
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            options |= {"streaming": kind == "streamed file"}
        source = open_source(data, **options)
        maker = PairMaker(tokenizer, source.form, max_length=None, chat_template=TEMPLATES["headers"])
        with spool_pairs(source, maker, window=2) as spool:
            windows = [spool.window(at) for at in range(len(spool))]
            skipped = sum(entry["count"] for entry in spool.skipped.values())
            assert sum(len(found) for _, reasons in windows for found in reasons.values()) == skipped
            assert spool.kept + skipped == spool.source_rows == len(rows)
            return [pair for found, _ in windows for pair in found]

    @settings(max_examples=20 if kind == "file" else 100, deadline=None)
    @given(
        st.sampled_from([*FORMS, "any"]).flatmap(
            lambda form: st.lists(
                rows_of_messages()
                if form == "conversational"
                else st.dictionaries(text, json_value, max_size=3)
                if form == "any"
                else rows_of_text(form),
                min_size=1,
                max_size=5,
            )
        ),
        st.sampled_from([{}, {"shuffle_seed": 3}, {"limit": 9}]),
    )
    def check(rows, options):
        try:
            pairs = pairs_of(rows, dict(options))
        except TdpoError as error:
            said = str(error)
            seen["error"] += 1
        else:
            said = ""
            seen["pair" if pairs else "skip"] += 1
            assert all(is_sound(pair, pair.row, len(tokenizer)) for pair in pairs)
        assert "\n" not in said
        said.encode()

    check()
    assert seen["pair"] > 0.05 * sum(seen.values()), seen
