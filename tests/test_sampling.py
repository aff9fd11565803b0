"""Pairs drawn from a model: scored, paired by threshold, the same under the same seed, ready for a build."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tdpo
from tdpo.core.sampling.ranking import far_apart

REWARDS = """
def good_words(prompts, completions):
    return [float(text.count("good") + text.count("great") - text.count("bad")) for text in completions]

def too_few(prompts, completions):
    return [0.0]

def broken(prompts, completions):
    raise KeyError("no such thing")

def endless(prompts, completions):
    return [float("inf")] * len(completions)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with prompts and a module of rewards; the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"the film was {word}"} for word in ("good", "dull", "great", "bad")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


OPTIONS = {"reward": "my_rewards:good_words", "samples": 6, "max_tokens": 12, "quiet": True}


def test_pairs_are_what_the_scores_say(reference, folder):
    result = tdpo.sample_pairs(reference, "prompts.jsonl", threshold=0.7, pairs_per_prompt=3, **OPTIONS)
    scored, pairs = lines(result.scored), lines(result.out)
    assert (result.prompts, result.pairs) == (4, len(pairs)) == (len(scored), result.pairs)
    assert result.pairs > 0
    for one in scored:
        assert len(one["completions"]) == len(one["scores"]) == 6
        assert one["scores"] == [
            float(t.count("good") + t.count("great") - t.count("bad")) for t in one["completions"]
        ]
        mine = [pair for pair in pairs if pair["prompt"] == one["prompt"]]
        assert len(mine) <= 3
        for pair in mine:
            assert pair["chosen"] in one["completions"]
            assert pair["rejected"] in one["completions"]
            gap = pair["chosen_score"] - pair["rejected_score"]
            assert 1 / (1 + math.exp(-gap)) >= 0.7


def test_the_same_seed_draws_the_same_whatever_the_batch(reference, folder):
    runs = []
    for out, options in (("a.jsonl", {}), ("b.jsonl", {}), ("c.jsonl", {"seed": 1})):
        runs.append(
            lines(tdpo.sample_pairs(reference, "prompts.jsonl", out=out, **OPTIONS, **options).scored)
        )
    assert runs[0] == runs[1] != runs[2]


def test_the_pairs_build_a_cache(reference, folder):
    result = tdpo.sample_pairs(reference, "prompts.jsonl", **OPTIONS)
    cache = tdpo.build_cache(reference, result.out, folder / "cache", quiet=True, max_skipped=1.0)
    assert 0 < len(cache) <= result.pairs


def test_it_is_said_when_no_scores_are_far_enough_apart(reference, folder):
    from click.testing import CliRunner

    from tdpo.core.cli import tdpo as command

    words = ["data", "sample", "--model", str(reference), "--prompts", "prompts.jsonl", "--max-tokens", "4"]
    words += ["--reward", "my_rewards:good_words", "--out"]
    far = CliRunner().invoke(command, [*words, "a.jsonl", "--tau", "1000"])
    assert "a.jsonl: 0 pairs of 4 prompts" in far.output
    assert "no two scores of a prompt are far enough apart; lower --threshold" in far.output
    near = CliRunner().invoke(command, [*words, "b.jsonl", "--threshold", "0.5"])
    assert "far enough apart" not in near.output


def test_conversations_are_drawn_through_the_chat_template(reference, folder):
    from transformers import AutoTokenizer

    model = folder / "chat"
    import shutil

    shutil.copytree(reference, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(model)
    row = {"prompt": [{"role": "user", "content": "the film"}]}
    (folder / "chats.jsonl").write_text(json.dumps(row) + "\n")
    result = tdpo.sample_pairs(model, "chats.jsonl", threshold=0.5, **OPTIONS)
    for pair in lines(result.out):
        assert pair["prompt"] == row["prompt"]
        assert [m["role"] for m in pair["chosen"] + pair["rejected"]] == ["assistant"] * 2
    with pytest.raises(tdpo.TdpoError, match="has no chat template"):
        tdpo.sample_pairs(reference, "chats.jsonl", out="other.jsonl", **OPTIONS)


def test_a_reward_model_scores(reference, folder):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(reference)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    options = {**OPTIONS, "reward": None, "reward_model": str(folder / "judge")}
    result = tdpo.sample_pairs(reference, "prompts.jsonl", threshold=0.5, **options)
    one = lines(result.scored)[0]
    text = one["prompt"] + one["completions"][0]
    with torch.no_grad():
        want = model(
            **{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"}
        )
    assert one["scores"][0] == pytest.approx(float(want.logits[0, 0]), abs=1e-4)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=7), st.floats(0.5, 0.95), st.floats(0.1, 3))
def test_pairs_are_all_those_far_enough_apart_the_furthest_first(scores, threshold, tau):
    texts = [str(place) for place in range(len(scores))]
    found = far_apart(texts, scores, tau=tau, threshold=threshold, most=100)
    gaps = [scores[a] - scores[b] for a, b in found]
    assert gaps == sorted(gaps, reverse=True)
    least = tau * math.log(threshold / (1 - threshold))
    for a in range(len(scores)):
        for b in range(len(scores)):
            far = scores[a] - scores[b] >= least and scores[a] > scores[b]
            assert ((a, b) in found) == far
    assert far_apart(texts, scores, tau=tau, threshold=threshold, most=1) == found[:1]
    assert far_apart(["same"] * len(scores), scores, tau=tau, threshold=threshold, most=9) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": None}, "give --reward MODULE:FUNCTION or --reward-model MODEL, one of the two"),
        ({"reward": "my_rewards"}, "expected MODULE:FUNCTION"),
        ({"reward": "my_rewards:none"}, "AttributeError"),
        ({"reward": "no_such_module:f"}, "ModuleNotFoundError"),
        ({"reward": "my_rewards:number"}, "is int, not a function"),
        ({"reward": "my_rewards:too_few"}, "returned 1 scores for 6 completions"),
        ({"reward": "my_rewards:broken"}, "raised KeyError"),
        ({"reward": "my_rewards:endless"}, "a score that is not finite"),
        ({"threshold": 0.3}, "threshold=0.3 is out of range"),
    ],
)
def test_a_reward_that_cannot_be_used_is_said_in_a_line(options, message, reference, folder):
    with pytest.raises(tdpo.TdpoError) as caught:
        tdpo.sample_pairs(reference, "prompts.jsonl", **{**OPTIONS, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prompts_are_read_from_whatever_preference_data_is(reference, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = lines(folder / "prompts.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    a = tdpo.sample_pairs(reference, "prompts.jsonl", out="a.jsonl", **OPTIONS)
    b = tdpo.sample_pairs(reference, "prompts.parquet", out="b.jsonl", **OPTIONS)
    assert lines(a.scored) == lines(b.scored)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"wrong\.jsonl"),
        ('{"text": "a"}\n', "row 0 has no `prompt`"),
        ('{"prompt": "a"}\n{"prompt": [1]}\n', "prompt"),
        ("not json\n", r"wrong\.jsonl"),
    ],
)
def test_prompts_that_are_none_are_said_with_their_place(content, message, reference, folder):
    (folder / "wrong.jsonl").write_text(content)
    with pytest.raises(tdpo.TdpoError, match=message):
        tdpo.sample_pairs(reference, "wrong.jsonl", **OPTIONS)


def test_nothing_is_overwritten_unless_asked_to(reference, folder):
    (folder / "pairs.jsonl").write_text("mine")
    with pytest.raises(tdpo.TdpoError, match=r"pairs\.jsonl: is there already"):
        tdpo.sample_pairs(reference, "prompts.jsonl", **OPTIONS)
    assert (folder / "pairs.jsonl").read_text() == "mine"
    tdpo.sample_pairs(reference, "prompts.jsonl", overwrite=True, **OPTIONS)
    assert (folder / "pairs.jsonl").read_text() != "mine"
