"""Plain-text rows become the tokens that the tokenizer gives for the whole text, cut at the prompt's end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tdpo.cache.pairs import Pair
from tdpo.core.data.pairing import REASONS, PairMaker, Skip
from tdpo.core.data.text import split_common
from tdpo.core.errors import DataError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A question of taste: what is the capital of France? It is Paris, not London.",
    "Human: hello there. Assistant: hello, how may I help you today?",
    "Résumé, naïve, שלום, こんにちは, 你好 and emoji 🙂.",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrap(tokenizer: Tokenizer, template: str | None = None, **special) -> PreTrainedTokenizerFast:
    if template:
        tokens = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        added = processors.TemplateProcessing(single=template, special_tokens=tokens)
        steps = [tokenizer.post_processor, added] if tokenizer.post_processor else [added]
        tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special,
    )


def byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


TOKENIZERS = {
    "byte BPE": wrap(byte_bpe()),
    "byte BPE, BOS": wrap(byte_bpe(), "<s> $A"),
    "byte BPE, BOS and EOS": wrap(byte_bpe(), "<s> $A </s>"),
    "unigram, BOS": wrap(unigram(), "<s> $A"),
    "unigram": wrap(unigram()),
}
PLAIN = TOKENIZERS["byte BPE"]
BOS, EOS = PLAIN.bos_token_id, PLAIN.eos_token_id
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def make(row: dict, form: str = "explicit", tokenizer=PLAIN, *, max_length=None, **options) -> Pair | Skip:
    return PairMaker(tokenizer, form, max_length=max_length, **options)(7, row)


def explicit(prompt, chosen, rejected) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def reason(made: Pair | Skip) -> str:
    assert isinstance(made, Skip), made
    assert made.reason in REASONS
    return made.reason


# Boundary, BOS and EOS


anything = st.text(st.characters(codec=None), min_size=0, max_size=40)
words = st.lists(
    st.sampled_from(["the", " fox", " ", "\n", "Paris", "is", "不", "🙂", "\u200b", "é", "שלום"]), max_size=9
)
texts = anything | words.map("".join)


@every_tokenizer
@settings(max_examples=80, deadline=None)
@given(texts, texts, texts)
def test_each_side_is_what_the_tokenizer_makes_of_the_whole_text(tokenizer, prompt, chosen, rejected):
    made = make(explicit(prompt, chosen, rejected), tokenizer=tokenizer)
    if isinstance(made, Skip):
        assert made.reason in REASONS
        return
    for side, ids in ((chosen, made.chosen_ids), (rejected, made.rejected_ids)):
        text = (prompt + side).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        whole = tokenizer(text)["input_ids"]
        expected = whole if whole[-1] == EOS else [*whole, EOS]
        joined = [*made.prompt_ids, *ids]
        # A prompt without any token of its own is given a BOS.
        assert joined in (expected, [BOS, *expected])
        assert len(made.prompt_ids) > 0
        assert len(ids) > 0
        assert ids.dtype == np.int32
        assert ids[-1] == EOS


def test_the_common_case_keeps_the_prompts_own_tokens():
    made = make(explicit("The capital of France is", " Paris.", " London."))
    assert made.prompt_ids.tolist() == PLAIN("The capital of France is")["input_ids"]
    assert PLAIN.decode(made.chosen_ids) == " Paris.</s>"
    assert PLAIN.decode(made.rejected_ids) == " London.</s>"
    assert made.row == 7


def test_a_token_that_grows_across_the_boundary_belongs_to_the_completion():
    assert len(PLAIN(" the")["input_ids"]) == 1
    made = make(explicit("over t", "he", "x"))
    assert PLAIN.decode(made.prompt_ids) == "over"
    assert PLAIN.decode(made.chosen_ids) == " the</s>"
    assert PLAIN.decode(made.rejected_ids) == " tx</s>"


def test_a_growing_token_on_one_side_moves_the_boundary_of_both():
    made = make(explicit("over the ", "lazy", " lazy"))
    assert len(made.prompt_ids) < len(PLAIN("over the ")["input_ids"])
    assert PLAIN.decode([*made.prompt_ids, *made.rejected_ids]) == "over the  lazy</s>"


@pytest.mark.parametrize("name", ["byte BPE, BOS", "byte BPE, BOS and EOS"])
@pytest.mark.parametrize("start", ["", "<s>"])
@pytest.mark.parametrize("end", ["", "</s>"])
def test_bos_and_eos_are_there_once(name, start, end):
    made = make(explicit(start + "the fox", " is" + end, " is not"), tokenizer=TOKENIZERS[name])
    for ids in (made.chosen_ids, made.rejected_ids):
        whole = [*made.prompt_ids, *ids]
        assert whole[0] == BOS
        assert whole[-1] == EOS
        assert whole.count(BOS) == whole.count(EOS) == 1


def test_eos_is_appended_without_a_bos_being_made_up():
    made = make(explicit("the fox", " is", " is not"))
    assert BOS not in made.prompt_ids
    assert made.chosen_ids[-1] == EOS


def test_an_empty_prompt_is_the_bos_alone():
    for tokenizer in TOKENIZERS.values():
        assert make(explicit("", "yes", "no"), tokenizer=tokenizer).prompt_ids.tolist() == [BOS]


def test_a_prompt_without_tokens_or_bos_is_skipped():
    assert (
        reason(make(explicit("", "yes", "no"), tokenizer=wrap(byte_bpe(), bos_token=None))) == "empty prompt"
    )


def test_plain_text_needs_an_eos_token():
    with pytest.raises(DataError, match="no eos_token"):
        make(explicit("q", "yes", "no"), tokenizer=wrap(byte_bpe(), eos_token=None))


@every_tokenizer
@pytest.mark.parametrize(
    "text", ["a\x00b", "\ud83d", "\ud83d\ude42", "\u202eשלום", "\u200b\u200d", "👩‍👩‍👧", "e\u0301"]
)
def test_odd_text_works(tokenizer, text):
    made = make(explicit("say " + text, " " + text + "!", text + " again"), tokenizer=tokenizer)
    assert isinstance(made, Pair)


def test_long_text_gives_no_warning(capfd):
    tokenizer = wrap(byte_bpe(), model_max_length=8)
    assert isinstance(make(explicit("the fox " * 20, "yes", "no"), tokenizer=tokenizer), Pair)
    assert capfd.readouterr() == ("", "")


# Reasons to skip


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (explicit("q", None, "b"), "missing chosen"),
        (explicit("q", "a", None), "missing rejected"),
        (explicit(None, "a", "b"), "missing prompt"),
        (explicit("q", " \n", "b"), "empty chosen"),
        (explicit("q", "a", ""), "empty rejected"),
        (explicit("q", "a", 3), "not text"),
        (explicit("q", ["a"], "b"), "not text"),
        (explicit(3, "a", "b"), "not text"),
        (explicit("q", "a", "a"), "identical sides"),
        (explicit("q", "a", "a</s>"), "identical sides"),
        (explicit("q", "</s>", "a"), "empty chosen"),
    ],
)
def test_unusable_explicit_rows_are_skipped(row, why):
    assert reason(make(row)) == why


# Implicit prompts


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The capital is Paris", "The capital is London", "The capital is"),
        ("The capital is Paris", "The capital is Prague", "The capital is"),
        ("The answer\n\nParis", "The answer\n\nLondon", "The answer\n\n"),
        ("so it is", "so it is not", "so it"),
        ("so it\nis", "so it is", "so it"),
        ("so  it", "so  he", "so"),
        ("什么是首都？巴黎", "什么是首都？伦敦", "什么是首都？"),
        ("首都\u845b\U000e0100城", "首都\u845b\U000e0101城", "首都"),
        ("see \U0001f469\u200d\U0001f467", "see \U0001f469\u200d\U0001f466", "see"),
        ("ok \U0001f44d\U0001f3fd", "ok \U0001f44d\U0001f3fb", "ok"),
        (
            "\u05e9\u05dc\u05d5\u05dd \u05db\u05df",
            "\u05e9\u05dc\u05d5\u05dd \u05dc\u05d0",
            "\u05e9\u05dc\u05d5\u05dd",
        ),
        ("\u201cyes\u201d she said", "\u201cyes\u201d he said", "\u201cyes\u201d"),
    ],
)
def test_an_implicit_prompt_ends_between_words(chosen, rejected, prompt):
    assert split_common(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


@settings(max_examples=200, deadline=None)
@given(texts, texts, texts)
def test_an_implicit_prompt_leaves_both_sides_something(start, one, other):
    split = split_common(start + one, start + other)
    if not isinstance(split, Skip):
        assert (split.prompt + split.chosen, split.prompt + split.rejected) == (start + one, start + other)
        assert all(part.strip() for part in split)
    elif not start.strip() or not one or not other:
        assert split.reason in ("no common prompt", "identical sides")


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("Paris it is", "London it is", "no common prompt"),
        ("Paris", "Prague", "no common prompt"),
        ("yes it is", "yes it is", "identical sides"),
        ("", "yes", "empty chosen"),
    ],
)
def test_unusable_implicit_rows_are_skipped(chosen, rejected, why):
    assert reason(make({"chosen": chosen, "rejected": rejected}, "implicit")) == why


# Dialogues with turns


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Human' if at % 2 == 0 else 'Assistant'}: {turn}" for at, turn in enumerate(turns))


def test_a_dialogue_is_cut_at_its_last_turn():
    made = make(
        {"chosen": hh("hi", "yes?", "why", "well, so"), "rejected": hh("hi", "yes?", "why", "well, no")}, "hh"
    )
    assert PLAIN.decode(made.prompt_ids) == hh("hi", "yes?", "why") + "\n\nAssistant:"
    assert PLAIN.decode(made.chosen_ids) == " well, so</s>"


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        (hh("hi", "a", "x", "b"), hh("hi", "a", "y", "b"), "no common prompt"),
        (hh("hi", "a"), hh("hi", "a", "x", "b"), "no common prompt"),
        (hh("hi", "a"), "no turns", "no common prompt"),
        ("no turns", "none here", "no common prompt"),
        (hh("hi", " "), hh("hi", "a"), "empty chosen"),
        (hh("hi", "a"), hh("hi", ""), "empty rejected"),
        (hh("hi", "a"), hh("hi", "a"), "identical sides"),
        (hh("hi", "a", "more"), hh("hi", "b", "more"), "no assistant turn"),
        (None, hh("hi", "a"), "missing chosen"),
    ],
)
def test_unusable_dialogues_are_skipped(chosen, rejected, why):
    assert reason(make({"chosen": chosen, "rejected": rejected}, "hh")) == why


# Length


LONG = explicit("the quick brown fox jumps over", " the lazy dog and the fox", " it")


def test_length_counts_the_prompt_and_the_longer_side():
    made = make(LONG)
    length = len(made.prompt_ids) + max(len(made.chosen_ids), len(made.rejected_ids))
    assert isinstance(make(LONG, max_length=length), Pair)
    assert reason(make(LONG, max_length=length - 1)) == "over length"
    with pytest.raises(DataError, match=rf"row 7: {length} tokens, more than --max-length {length - 1}"):
        make(LONG, max_length=length - 1, truncation="error")


@every_tokenizer
@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
@pytest.mark.parametrize("truncate", ["prompt", "completion"])
def test_truncation_fits_and_empties_nothing(tokenizer, truncation, truncate):
    full = make(LONG, tokenizer=tokenizer)
    length = len(full.prompt_ids) + len(full.chosen_ids)
    for limit in range(2, length + 1):
        made = make(LONG, tokenizer=tokenizer, max_length=limit, truncation=truncation, truncate=truncate)
        if isinstance(made, Skip):
            cut_to = limit - len(full.chosen_ids if truncate == "prompt" else full.prompt_ids)
            assert cut_to < 1 or made.reason == "identical sides"
            continue
        sides = [made.prompt_ids, made.chosen_ids, made.rejected_ids]
        assert all(len(ids) for ids in sides)
        assert len(sides[0]) + max(len(sides[1]), len(sides[2])) <= limit
        if truncate == "prompt":
            assert np.array_equal(made.chosen_ids, full.chosen_ids)
            assert (made.prompt_ids[0] == BOS) == (full.prompt_ids[0] == BOS)
        else:
            assert np.array_equal(made.prompt_ids, full.prompt_ids)


def test_truncation_keeps_the_named_end():
    full = make(LONG)
    limit = len(full.prompt_ids) + len(full.chosen_ids) - 2
    options = {"max_length": limit, "truncate": "prompt"}
    assert np.array_equal(make(LONG, **options, truncation="keep_start").prompt_ids, full.prompt_ids[:-2])
    assert np.array_equal(make(LONG, **options, truncation="keep_end").prompt_ids, full.prompt_ids[2:])
    options["truncate"] = "completion"
    assert np.array_equal(make(LONG, **options, truncation="keep_start").chosen_ids, full.chosen_ids[:-2])
    assert np.array_equal(make(LONG, **options, truncation="keep_end").chosen_ids, full.chosen_ids[2:])


def test_sides_that_truncation_makes_identical_are_skipped():
    row = explicit("q", " the fox jumps", " the fox sleeps")
    assert (
        reason(make(row, max_length=3, truncation="keep_start", truncate="completion")) == "identical sides"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"truncation": "cut"}, "truncation is 'cut': choose one of error, drop, keep_start, keep_end"),
        ({"truncate": "both"}, "truncate is 'both'"),
        ({"max_length": 1}, "max_length is 1"),
        ({"form": "chat"}, "form is 'chat'"),
    ],
)
def test_unknown_choices_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        make(LONG, **options)
