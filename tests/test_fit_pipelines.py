"""Fits that build on fits: swapped labels, likelihood of one side, and TIS-DPO's contrastive pairs."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from doc_blocks import blocks_of
from support import make_judge, make_tokenizer

import tdpo
from tdpo.core.cli import tdpo as tdpo_command
from tdpo.core.joining import Added, JoinedPair
from tdpo.core.swapping import swapped

OPTIONS = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "quiet": True}


def losses(folder):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if "loss" in event]


@pytest.fixture(scope="module")
def two_caches(tmp_path_factory, reference, pairs):
    """A cache, and one of the same data with its labels exchanged in the file."""
    folder = tmp_path_factory.mktemp("swapped")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    with (folder / "pairs.jsonl").open("w") as file:
        for row in rows:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            file.write(json.dumps(row) + "\n")
    tdpo.build_cache(reference, pairs, folder / "plain", quiet=True)
    tdpo.build_cache(reference, folder / "pairs.jsonl", folder / "exchanged", quiet=True)
    return folder / "plain", folder / "exchanged"


@pytest.mark.parametrize("plugin", ["dpo", "sft"])
def test_swapping_is_training_from_data_with_exchanged_labels(plugin, two_caches, tmp_path):
    plain, exchanged = two_caches
    tdpo.fit(plugin, plain, swap=True, output=str(tmp_path / "a"), **OPTIONS)
    tdpo.fit(plugin, exchanged, output=str(tmp_path / "b"), **OPTIONS)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    tdpo.fit(plugin, plain, output=str(tmp_path / "c"), **OPTIONS)
    assert losses(tmp_path / "c") != pytest.approx(losses(tmp_path / "a"), rel=1e-5)


def test_likelihood_of_the_rejected_side_is_that_of_the_chosen_side_swapped(cache, tmp_path):
    tdpo.fit("sft", cache, swap=True, output=str(tmp_path / "a"), **OPTIONS)
    tdpo.fit("sft", cache, set={"side": "rejected"}, output=str(tmp_path / "b"), **OPTIONS)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)


def test_what_was_added_is_exchanged_with_its_side(cache):
    one = tdpo.open_cache(cache)[0]
    ends = np.zeros(1), np.ones(1)
    joined = JoinedPair(one.pair, one.chosen, one.rejected, {"novelty": Added("completion", *ends)})
    other = swapped(joined)
    assert other.added["novelty"] == Added("completion", ends[1], ends[0])
    assert other.pair.chosen_ids is one.pair.rejected_ids
    assert other.chosen is one.rejected
    assert swapped(other).pair.chosen_ids is one.pair.chosen_ids


def contrast_by_dpo(cache, folder):
    tdpo.fit("dpo", cache, output=str(folder / "positive"), **OPTIONS)
    tdpo.fit("dpo", cache, swap=True, output=str(folder / "negative"), **OPTIONS)


def contrast_by_sft(cache, folder):
    tdpo.fit("sft", cache, output=str(folder / "positive"), **OPTIONS)
    tdpo.fit("sft", cache, set={"side": "rejected"}, output=str(folder / "negative"), **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [contrast_by_dpo, contrast_by_sft])
def test_tis_dpo_from_a_contrastive_pair_that_was_trained_for_it(contrast, cache, tmp_path):
    """The pipeline of arXiv 2410.04350: two models, their log-probs beside the cache, weighted training."""
    mine = shutil.copytree(cache, tmp_path / "cache")
    contrast(mine, tmp_path)
    with pytest.raises(tdpo.TdpoError, match=r"tdpo cache add .* --positive MODEL --negative MODEL"):
        tdpo.fit("tis_dpo", mine, weighting="tis", output=str(tmp_path / "early"), **OPTIONS)
    tdpo.add_statistics(
        mine,
        "contrast",
        positive=str(tmp_path / "positive"),
        negative=str(tmp_path / "negative"),
        quiet=True,
    )
    result = tdpo.fit("tis_dpo", mine, weighting="tis", output=str(tmp_path / "tis"), **OPTIONS)
    plain = tdpo.fit("dpo", mine, output=str(tmp_path / "dpo"), **OPTIONS)
    assert losses(tmp_path / "tis") != losses(tmp_path / "dpo")
    # At the reference every log-ratio is 0, whatever its weight.
    assert losses(tmp_path / "tis")[0] == pytest.approx(losses(tmp_path / "dpo")[0], abs=1e-5)
    assert result.steps == plain.steps
    # Weights prefer, on chosen, what the positive model finds likelier.
    scores = tdpo.open_scores(mine, "contrast")
    one = tdpo.open_cache(mine)[0].pair
    found = scores.read([one])
    apart = found["chosen_positive_logp"][0] - found["chosen_negative_logp"][0]
    assert np.abs(apart).max() > 1e-4


def write_embedder(folder):
    """A sentence-embedding model: a small BERT."""
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_the_page_of_recipes_runs(reference, cache, tmp_path, monkeypatch):
    """Every command of docs/recipes.md, one after another, in a folder as it says; runs of two steps."""
    shutil.copytree(cache, tmp_path / "tdpo-cache")
    shutil.copytree(reference, tmp_path / "model")
    shutil.copytree(reference, tmp_path / "chat-model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}: {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat-model")
    write_embedder(tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    # A reward model with a chat template of its own, and room for a conversation.
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    make_judge(tmp_path / "judge", template=template, positions=2048)
    (tmp_path / "tdpo.yaml").write_text("fit: {max_steps: 2}\n")
    prompts = [f"the film was {word}" for word in ("good", "bad", "dull")]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    for name, rows in (("prompts.jsonl", prompts), ("chats.jsonl", chats)):
        (tmp_path / name).write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    monkeypatch.chdir(tmp_path)
    # Modules of this name may have been imported elsewhere.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    commands = []
    for block in blocks_of(Path(__file__).parent.parent / "docs" / "recipes.md"):
        assert block.not_run is None
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        else:
            commands += block.commands
    assert len(commands) > 20
    for command in commands:
        name, *words = shlex.split(command)
        assert name == "tdpo"
        result = CliRunner().invoke(tdpo_command, words)
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert (tmp_path / "judged.jsonl").read_text()
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
