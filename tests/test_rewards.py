"""Reward models: through their own chat template, whole or not at all, whatever tokens they pad with."""

import json
import shutil

import pytest
import torch
from support import make_judge, make_tokenizer

import tdpo
from tdpo.core.sampling.rewards import open_reward

TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the film"}]


def score_of(folder, text, **options):
    """One text, alone, in float64."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(text, **options)["input_ids"]])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def test_a_conversation_is_scored_as_the_models_own_template_renders_it(tmp_path):
    folder = make_judge(tmp_path / "judge", template=TEMPLATE)
    reward = open_reward(None, str(folder))
    answers = ["good", "a very bad story"]
    # What the policy's template makes of the prompt is not what this model is to read.
    found = reward(["<policy>the film"] * 2, answers, [CHAT, CHAT])
    for score, answer in zip(found, answers, strict=True):
        text = f"<s>[system] be kind</s>[user] the film</s>[assistant] {answer}</s>"
        assert score == pytest.approx(score_of(folder, text, add_special_tokens=False), abs=1e-5)


def test_texts_and_models_without_a_template_are_scored_as_text(tmp_path):
    plain, chat = make_judge(tmp_path / "plain"), make_judge(tmp_path / "chat", template=TEMPLATE)
    want = score_of(plain, "the film was good")
    for folder, messages in ((plain, None), (plain, [CHAT]), (chat, None), (chat, [None])):
        found = open_reward(None, str(folder))(["the film"], [" was good"], messages)
        assert found == pytest.approx([want], abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_neither_company_nor_a_padding_token_matters(pad, tmp_path):
    folder = make_judge(tmp_path / "judge", pad=pad)
    texts = ["good", "a very bad and dull story", "great film"]
    found = open_reward(None, str(folder))(["the plot is "] * 3, texts)
    assert found == pytest.approx([score_of(folder, "the plot is " + text) for text in texts], abs=1e-5)


def test_what_does_not_fit_is_refused_and_not_cut(tmp_path):
    reward = open_reward(None, str(make_judge(tmp_path / "judge", positions=8)))
    assert len(reward(["a "], ["good"])) == 1
    with pytest.raises(tdpo.TdpoError, match=r"takes 8 tokens, and a prompt with its completion has \d+"):
        reward(["a ", "a "], ["good", "good " * 12])


def test_a_conversation_that_the_template_refuses_is_said_in_a_line(tmp_path):
    reward = open_reward(None, str(make_judge(tmp_path / "judge", template=TEMPLATE)))
    tools = [*CHAT, {"role": "tool", "content": "42"}]
    with pytest.raises(tdpo.TdpoError, match=r"does not render .*no tools") as caught:
        reward(["x"], ["y"], [tools])
    assert "\n" not in str(caught.value)


def test_a_function_is_given_texts_of_conversations_too(tmp_path, monkeypatch):
    (tmp_path / "texts_only.py").write_text(
        "def score(prompts, completions): return [len(p) + len(c) for p, c in zip(prompts, completions)]"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert open_reward("texts_only:score", None)(["abc"], ["de"], [CHAT]) == [5.0]


def test_sampled_conversations_reach_the_reward_model_as_messages(reference, tmp_path):
    """`tdpo data sample` with a policy and a reward model of different templates."""
    folder = make_judge(tmp_path / "judge", template=TEMPLATE, positions=128)
    policy = shutil.copytree(reference, tmp_path / "policy")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
    tokenizer.save_pretrained(policy)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": CHAT}) + "\n")
    result = tdpo.sample_pairs(
        policy,
        tmp_path / "chats.jsonl",
        out=str(tmp_path / "pairs.jsonl"),
        reward_model=str(folder),
        samples=3,
        max_tokens=6,
        quiet=True,
    )
    (row,) = (json.loads(line) for line in result.scored.read_text().splitlines())
    for answer, score in zip(row["completions"], row["scores"], strict=True):
        text = f"<s>[system] be kind</s>[user] the film</s>[assistant] {answer}</s>"
        assert score == pytest.approx(score_of(folder, text, add_special_tokens=False), abs=1e-5)
