"""A system prompt put among the tokens of cached prompts, as the chat template would have put it."""

import json
import re

import chat_templates
import numpy as np
import pytest
import torch
from support import WORDS, make_model, make_tokenizer

import tdpo
from tdpo.core.caching.adding.place import PromptPlacer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a good plot.<|im_end|>\n{% endif %}"
    + CHATML
)
WITH_BOS = "{{ bos_token }}" + CHATML
# As Gemma has it: the system's words before the first user's.
IN_USER = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<|im_start|>{{ m.role }}\n{{ (first if loop.first else '') + m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No mark of its own before the system's words.
BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "default": DEFAULT, "bos": WITH_BOS, "in-user": IN_USER, "bare": BARE}
# Those with the habits of templates in use that take a system message.
IN_USE = {name: text for name, text in chat_templates.TEMPLATES.items() if name != "turns"}

SYSTEM = "be a great and good actor"


def chat_tokenizer(template):
    tokenizer = make_tokenizer(extra=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer, *messages):
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("words", ["the film was bad", "7", "\nHello there, 3 cats!", "<b>é"])
def test_a_placed_prompt_equals_the_rendered_one(name, words):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    turns = [("user", words), ("assistant", "dull"), ("user", "great")]
    placed = PromptPlacer(tokenizer, SYSTEM, conversational=True)(np.array(rendered(tokenizer, *turns)))
    assert placed.tolist() == rendered(tokenizer, ("system", SYSTEM), *turns)
    assert placed.dtype == np.int32


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversations_own_system_message_stays_behind_the_prompt(name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    own = rendered(tokenizer, ("system", "dull story"), ("user", "the plot"))
    placed = PromptPlacer(tokenizer, SYSTEM, conversational=True)(np.array(own))
    both = rendered(tokenizer, ("system", f"{SYSTEM}\n\ndull story"), ("user", "the plot"))
    assert tokenizer.decode(placed) == tokenizer.decode(both)


@pytest.mark.parametrize("make", [chat_templates.byte_bpe, chat_templates.unigram])
@pytest.mark.parametrize("name", IN_USE)
def test_templates_in_use_with_tokenizers_that_merge(name, make):
    tokenizer = make()
    tokenizer.chat_template = IN_USE[name]
    placer = PromptPlacer(tokenizer, SYSTEM, conversational=True)
    for words in ("the film", "7", "Hello there", "<b> é", "yes"):
        placed = placer(np.array(rendered(tokenizer, ("user", words))))
        assert placed.tolist() == rendered(tokenizer, ("system", SYSTEM), ("user", words))
    own = placer(np.array(rendered(tokenizer, ("system", "dull"), ("user", "the film"))))
    both = rendered(tokenizer, ("system", f"{SYSTEM}\n\ndull"), ("user", "the film"))
    assert tokenizer.decode(own) == tokenizer.decode(both)


def test_added_is_by_how_much_a_prompt_grows():
    tokenizer = chat_tokenizer(DEFAULT)
    placer = PromptPlacer(tokenizer, SYSTEM, conversational=True)
    for turns in ([("user", "plot")], [("system", "dull"), ("user", "plot")]):
        before = np.array(rendered(tokenizer, *turns))
        assert len(placer(before)) <= len(before) + placer.added


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
            "no system",
        ),
        (
            "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}{% endfor %}",
            "ignores system",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content + messages[0].content }}{% endfor %}",
            "among the user's words",
        ),
    ],
)
def test_a_template_without_a_place_for_it_is_refused(template, message):
    with pytest.raises(tdpo.TdpoError, match=re.escape(message) + ".*--positive MODEL --negative MODEL"):
        PromptPlacer(chat_tokenizer(template), SYSTEM, conversational=True)


def test_what_does_not_begin_as_the_template_has_it_has_no_place():
    tokenizer = chat_tokenizer(CHATML)
    placer = PromptPlacer(tokenizer, SYSTEM, conversational=True)
    assert placer(np.array(rendered(tokenizer, ("user", "the plot"))[2:])) is None


def test_plain_text_goes_after_bos():
    tokenizer = make_tokenizer()
    placer = PromptPlacer(tokenizer, "good ", conversational=False)
    ids = tokenizer("good ", add_special_tokens=False).input_ids
    assert placer(np.array([0, 7, 8])).tolist() == [0, *ids, 7, 8]
    assert placer(np.array([7, 8])).tolist() == [*ids, 7, 8]
    assert placer.added == len(ids)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A cache of conversations, some with a system message of their own, and its reference."""
    home = tmp_path_factory.mktemp("chats")
    tokenizer = chat_tokenizer(DEFAULT)
    make_model(len(tokenizer)).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    with (home / "pairs.jsonl").open("w") as file:
        for at in range(12):
            prompt = [{"role": "user", "content": " ".join(WORDS[at : at + 3])}]
            if at % 4 == 0:
                prompt.insert(0, {"role": "system", "content": "dull"})
            sides = ([{"role": "assistant", "content": word}] for word in ("good plot", "bad actor story"))
            row = dict(zip(("prompt", "chosen", "rejected"), (prompt, *sides), strict=True))
            file.write(json.dumps(row) + "\n")
    tdpo.build_cache(home / "model", home / "pairs.jsonl", home / "cache", quiet=True)
    return home


def test_conversations_are_scored_as_if_they_had_been_rendered_with_it(chats):
    from transformers import AutoModelForCausalLM

    tokenizer = chat_tokenizer(DEFAULT)
    model = AutoModelForCausalLM.from_pretrained(chats / "model").double().eval()
    texts = {"positive": SYSTEM, "negative": "bad"}
    scores = tdpo.add_statistics(
        chats / "cache", "prompts", positive_prompt=SYSTEM, negative_prompt="bad", quiet=True
    )
    records = list(tdpo.open_cache(chats / "cache"))
    values = scores.read([record.pair for record in records])
    for at, record in enumerate(records):
        words = ("user", " ".join(WORDS[at : at + 3]))
        for view, text in texts.items():
            whole = f"{text}\n\ndull" if at % 4 == 0 else text
            prompt = rendered(tokenizer, ("system", whole), words)
            for side in ("chosen", "rejected"):
                ids = record.pair.ids(side).tolist()
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
                want = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
                np.testing.assert_allclose(values[f"{side}_{view}_logp"][at], want, atol=2e-5)


def test_another_template_than_the_caches_is_refused(chats, tmp_path):
    (tmp_path / "template.jinja").write_text(CHATML)
    options = {"positive_prompt": "a", "negative_prompt": "b", "quiet": True}
    with pytest.raises(tdpo.TdpoError, match="is not the one the cache was built with"):
        tdpo.add_statistics(chats / "cache", "x", chat_template=str(tmp_path / "template.jinja"), **options)
