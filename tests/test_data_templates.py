"""Over templates and tokenizers of all habits, tokens are those of the whole dialogue, cut at a turn."""

import datetime
import json

import datasets
import pytest
from chat_templates import HEADERS, INSTRUCTIONS, TEMPLATES, THOUGHTS, TOOLS, byte_bpe, unigram
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

import tdpo
from tdpo.cache.pairs import Pair
from tdpo.core.data.pairing import PairMaker, Skip
from tdpo.core.data.source import open_source
from tdpo.core.errors import ConfigError, DataError

TOKENIZERS = {"byte BPE": byte_bpe(), "unigram": unigram()}
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)

TRICKY = [
    "\u201cCurly\u201d \u2018quotes\u2019\u2026 and dashes \u2014 here",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family",  # joined by zero-width joiners
    "\U0001f44d\U0001f3fd thumbs",  # with a skin tone
    "\u2764\ufe0f heart",  # with a variation selector
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",  # right to left
    "\u202ereversed\u202c",
    "zero\u200bwidth\u200c\u200d\ufeff",
    "e\u0301 and \u00e9, \u4f60\u597d\uff0c\u3053\u3093",
    "  leading and trailing  ",
    "\n\nlines\n",
    "tabs\tand\r\nreturns",
    "{{ jinja }} {% raw %}",
    "[INST] </s> is no turn",
    "a",
]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content):
    return message("user", content)


def answer(content, **more):
    return message("assistant", content, **more)


def make(row, template, tokenizer, **options):
    return PairMaker(tokenizer, "conversational", max_length=None, chat_template=template, **options)(0, row)


def whole(messages, template, tokenizer, **options):
    ids = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, **options)
    return ids["input_ids"]


def common(*lists):
    """Length of the longest common prefix."""
    columns = zip(*lists, strict=False)
    return next((at for at, ids in enumerate(columns) if len(set(ids)) > 1), min(map(len, lists)))


content = st.lists(st.sampled_from([*TRICKY, " ", "The answer is", "."]), min_size=1, max_size=3).map("".join)
said = content.filter(str.strip)


@st.composite
def dialogues(draw):
    """Messages before the answers, and two answers that often begin alike."""
    prompt = [message("system", draw(said))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [user(draw(said)), answer(draw(said))]
    prompt.append(user(draw(said)))
    start = draw(st.sampled_from(["", "The answer is", "\n"]))
    return prompt, answer(start + draw(said)), answer(start + draw(said))


@every_template
@every_tokenizer
@settings(max_examples=60, deadline=None)
@given(dialogues())
def test_tokens_are_those_of_the_whole_dialogue_cut_at_the_turn(template, tokenizer, dialogue):
    prompt, chosen, rejected = dialogue
    rows = [
        {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]},
        {"prompt": prompt, "chosen": chosen["content"], "rejected": rejected["content"]},
        {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
        {"prompt": prompt[-1]["content"], "chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
    ]
    made = [make(row, template, tokenizer) for row in rows]
    assert made[1:] == made[:-1]
    if isinstance(made[0], Skip):
        assert made[0].reason in ("identical sides", "refused by the chat template")
        refused = template == TEMPLATES["turns"] and prompt[0]["role"] == "system"
        assert refused or made[0].reason == "identical sides"
        return
    before = whole(prompt, template, tokenizer, add_generation_prompt=True)
    sides = [whole([*prompt, each], template, tokenizer) for each in (chosen, rejected)]
    assert [*made[0].prompt_ids, *made[0].chosen_ids] == sides[0]
    assert [*made[0].prompt_ids, *made[0].rejected_ids] == sides[1]
    # As long as the prompt's tokens go, and not a token further, however alike the answers begin.
    assert len(made[0].prompt_ids) == common(before, *sides)
    # The cut moves by no more than the tokens that the boundary joins.
    text = tokenizer.apply_chat_template(
        prompt, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    left_over = tokenizer.decode(before[len(made[0].prompt_ids) :])
    assert len(left_over) < 40 < len(text) or len(text) <= 40


@every_tokenizer
def test_answers_that_begin_alike_are_not_cut_inside(tokenizer):
    row = {"prompt": "q", "chosen": [answer("The answer is yes")], "rejected": [answer("The answer is no")]}
    made = make(row, HEADERS, tokenizer)
    for ids in (made.chosen_ids, made.rejected_ids):
        assert "The answer is" in tokenizer.decode(ids)
    assert "The" not in tokenizer.decode(made.prompt_ids)


def test_the_tokenizers_merge_across_the_boundary():
    """Otherwise the property above says little."""
    row = {"prompt": [user("q")], "chosen": [answer("\n\nyes")], "rejected": [answer("\n\nno")]}
    for tokenizer in TOKENIZERS.values():
        moved = 0
        for template in TEMPLATES.values():
            before = whole(row["prompt"], template, tokenizer, add_generation_prompt=True)
            moved += len(make(row, template, tokenizer).prompt_ids) < len(before)
        assert moved > 0


# Tools, calls and thoughts

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"b": {"enum": [1, 2.5]}, "a": {}}}}
CALL = {"function": {"name": "look", "arguments": {"where": "\u05e9\u05dc\u05d5\u05dd", "n": 1}}}
STEPS = [message("assistant", "", tool_calls=[CALL]), message("tool", "3"), answer("three")]


@pytest.mark.parametrize("template", [HEADERS, TOOLS])
@every_tokenizer
@pytest.mark.parametrize("place", ["in the answers", "in the prompt", "in both"])
def test_tool_calls_and_their_results_are_rendered_where_they_stand(template, tokenizer, place):
    before = [user("how many?")] if place == "in the answers" else [user("how many?"), *STEPS[:2]]
    chosen = [answer("two")] if place == "in the prompt" else STEPS
    row = {"prompt": before, "chosen": chosen, "rejected": [answer("none")], "tools": [TOOL]}
    for tools in ([TOOL], json.dumps([TOOL])):
        made = make({**row, "tools": tools}, template, tokenizer)
        assert isinstance(made, Pair)
        assert [*made.prompt_ids, *made.chosen_ids] == whole(
            [*before, *chosen], template, tokenizer, tools=[TOOL]
        )
    rendered = tokenizer.apply_chat_template(before, chat_template=template, tools=[TOOL], tokenize=False)
    assert '"b"' in rendered


@pytest.mark.parametrize("kind", ["memory", "arrow", "jsonl", "stream", "parquet"])
def test_tools_and_switches_of_each_row_survive_the_way_through_the_data(tmp_path, monkeypatch, kind):
    """Other rows' tools and switches, which Arrow mixes in as nulls, do not show."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    other = {"type": "function", "function": {"parameters": {"a": {"x": 1}}, "name": "list"}}
    rows = [
        {"prompt": [user("a")], "chosen": STEPS, "rejected": [answer("no")], "tools": [TOOL]},
        {"prompt": [user("b")], "chosen": [answer("c")], "rejected": [answer("no")], "tools": [other, TOOL]},
        {"prompt": [user("c")], "chosen": [answer("d")], "rejected": [answer("e")], "tools": None},
        {
            "prompt": [user("d")],
            "chosen": [answer("d", name="x")],
            "rejected": [answer("e")],
            "tools": [],
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ]
    tokenizer = TOKENIZERS["byte BPE"]
    data = {"memory": rows, "stream": iter(rows)}.get(kind)
    if kind in ("arrow", "parquet"):
        # Objects that Arrow would give one order of keys travel as text.
        as_text = [{**row, "tools": json.dumps(row["tools"]) if row["tools"] else None} for row in rows]
        data = datasets.Dataset.from_list([{"chat_template_kwargs": None, **row} for row in as_text])
        if kind == "parquet":
            data.to_parquet(tmp_path / "a.parquet")
            data = tmp_path / "a.parquet"
    elif kind == "jsonl":
        data = tmp_path / "a.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(open_source(data).rows)
    for template in (HEADERS, TOOLS, THOUGHTS):
        for row, given_row in zip(rows, read, strict=True):
            made = make(given_row, template, tokenizer)
            options = {"tools": row["tools"] or None, **row.get("chat_template_kwargs", {})}
            dialogue = [*row["prompt"], *row["chosen"]]
            assert [*made.prompt_ids, *made.chosen_ids] == whole(dialogue, template, tokenizer, **options)


@every_tokenizer
def test_thoughts_of_the_answer_are_its_completion_and_past_thoughts_are_gone(tokenizer):
    before = [user("a"), answer("b", reasoning_content="past"), user("c")]
    chosen, rejected = answer("d", reasoning_content="because"), answer("e")
    made = make({"prompt": before, "chosen": [chosen], "rejected": [rejected]}, THOUGHTS, tokenizer)
    assert "because" in tokenizer.decode(made.chosen_ids)
    assert "past" not in tokenizer.decode(made.prompt_ids)
    assert "You are kind." in tokenizer.decode(made.prompt_ids)
    assert [*made.prompt_ids, *made.chosen_ids] == whole([*before, chosen], THOUGHTS, tokenizer)


@every_tokenizer
def test_a_generation_prompt_that_the_answer_contradicts_is_an_error_that_says_so(tokenizer):
    row = {
        "prompt": [user("a")],
        "chosen": [answer("d", reasoning_content="because")],
        "rejected": [answer("e")],
    }
    assert isinstance(make(row, THOUGHTS, tokenizer), Pair)
    with pytest.raises(DataError) as caught:
        make({**row, "chat_template_kwargs": {"enable_thinking": False}}, THOUGHTS, tokenizer)
    assert "renders the prompt otherwise once the chosen answer follows" in str(caught.value)
    assert "enable_thinking" in str(caught.value)
    without = {**row, "chosen": [answer("d")], "chat_template_kwargs": {"enable_thinking": False}}
    made = make(without, THOUGHTS, tokenizer)
    assert tokenizer.decode(made.prompt_ids).rstrip().endswith("</think>")


def test_special_tokens_are_the_templates_alone():
    """A tokenizer that adds BOS and EOS to texts adds none to what a template has rendered."""
    tokenizer = byte_bpe()
    backend = tokenizer.backend_tokenizer
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    added = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    backend.post_processor = added
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for template, starts in ((INSTRUCTIONS, 1), (HEADERS, 0)):
        made = make({"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}, template, tokenizer)
        ids = [*made.prompt_ids, *made.chosen_ids]
        assert ids.count(tokenizer.bos_token_id) == starts
        assert ids == whole([user("q"), answer("a")], template, tokenizer)


def test_named_templates_are_chosen_as_the_tokenizer_does():
    tokenizer = byte_bpe()
    tokenizer.chat_template = {"default": HEADERS, "tool_use": TOOLS}
    row = {"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}
    for tools, template in ((None, HEADERS), ([TOOL], TOOLS)):
        made = make({**row, "tools": tools}, None, tokenizer)
        assert [*made.prompt_ids, *made.chosen_ids] == whole(
            [user("q"), answer("a")], template, tokenizer, tools=tools
        )


# The date

DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n" + HEADERS.lstrip()


def test_a_template_that_writes_the_date_needs_to_be_told_which():
    tokenizer = TOKENIZERS["byte BPE"]
    row = {"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}
    with pytest.raises(DataError, match="--template-date YYYY-MM-DD"):
        make(row, DATED, tokenizer)
    on = {"today": datetime.date(2024, 7, 26)}
    made = make(row, DATED, tokenizer, **on)
    assert tokenizer.decode(made.prompt_ids).startswith("26 Jul 2024")
    given_by_the_row = {**row, "chat_template_kwargs": {"date_string": "26 Jul 2024"}}
    assert make(given_by_the_row, DATED, tokenizer) == made
    assert (
        make({**row, "chat_template_kwargs": {"dates": {"%d %b %Y": "never"}}}, DATED, tokenizer, **on)
        == made
    )
    assert make(row, HEADERS, tokenizer, today=datetime.date(2024, 7, 26)) == make(row, HEADERS, tokenizer)


@pytest.mark.parametrize(
    "start", ["", "\n", "  ", "  {%- if true %}x{% endif %}", "  {% if true %}x{% endif %}\n"]
)
def test_fixing_the_date_changes_nothing_else(start):
    """Not even white space, which the template language is particular about."""
    tokenizer = TOKENIZERS["byte BPE"]
    inside = "{% macro f() %}{{ strftime_now('%Y') + strftime_now(format=\"%d\") }}{% endmacro %}{{ f() }}\n"
    template = start + inside + "{% for m in messages %}{{ m.content }}{% endfor %}"
    today = datetime.date(1999, 1, 2)
    row = {"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}
    made = make(row, template, tokenizer, today=today)
    fixed = template.replace("strftime_now('%Y') + strftime_now(format=\"%d\")", "'199902'")
    assert [*made.prompt_ids, *made.chosen_ids] == whole([user("q"), answer("a")], fixed, tokenizer)


def test_a_date_in_a_form_that_is_made_up_is_refused_row_by_row():
    template = "{{ strftime_now('%' + 'd') }}" + HEADERS.lstrip()
    row = {"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}
    made = make(row, template, TOKENIZERS["unigram"], today=datetime.date(1999, 1, 2))
    assert made == Skip("refused by the chat template", "no date is known for %d")


def test_a_broken_template_with_a_date_is_told_with_its_own_line():
    with pytest.raises(DataError, match="the chat template, line 2: "):
        make(
            {"prompt": "q", "chosen": "a", "rejected": [answer("b")]},
            "{{ strftime_now('%d') }}\n{% for %}",
            TOKENIZERS["unigram"],
        )


def test_the_templates_date_is_an_option_of_the_build(tmp_path, reference):
    (tmp_path / "dated.jinja").write_text(DATED)
    rows = [{"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b")]}]
    options = {"chat_template": str(tmp_path / "dated.jinja"), "quiet": True}
    with pytest.raises(DataError, match="--template-date"):
        tdpo.preview_build(reference, rows, **options)
    with pytest.raises(ConfigError, match="--template-date tomorrow: not a day; write it as 2025-01-31"):
        tdpo.preview_build(reference, rows, template_date="tomorrow", **options)
    (tmp_path / "tdpo.yaml").write_text("build: {template_date: 2024-07-26}")
    shown = tdpo.preview_build(reference, rows, config=tmp_path / "tdpo.yaml", **options)
    assert "".join(shown.pairs[0].prompt_tokens).startswith("26 Jul 2024")


# Plain text


@every_tokenizer
@pytest.mark.parametrize("form", ["explicit", "implicit", "hh"])
@settings(max_examples=60, deadline=None)
@given(said, said, said)
def test_tricky_text_is_tokenised_whole(tokenizer, form, prompt, chosen, rejected):
    if form == "hh":
        prompt = f"\n\nHuman: {prompt}\n\nAssistant:"
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if form != "explicit":
        row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    made = PairMaker(tokenizer, form, max_length=None)(0, row)
    if isinstance(made, Skip):
        assert made.reason in ("identical sides", "no common prompt")
        return
    eos = tokenizer.eos_token_id
    for side, ids in ((chosen, made.chosen_ids), (rejected, made.rejected_ids)):
        expected = tokenizer(prompt + side)["input_ids"]
        expected += [eos] if expected[-1] != eos else []
        assert [*made.prompt_ids, *ids] in (expected, [tokenizer.bos_token_id, *expected])
    if form != "implicit":
        before = tokenizer(prompt)["input_ids"]
        assert len(before) - len(made.prompt_ids) <= 20
