"""What the demonstration prepares: a reference, pairs, prompts and tdpo.yaml, the same for a seed."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tdpo.core.config.file import build_config, fit_config
from tdpo.core.demo.corpus import reviews, sentiment
from tdpo.core.demo.folder import read_jsonl
from tdpo.core.demo.pairs import agreement, preference, prompts_from, sample_pairs
from tdpo.core.demo.prepare import prepare
from tdpo.core.errors import ConfigError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return prepare(
        tmp_path_factory.mktemp("demo") / "here", seed=0, size="tiny", echo=lambda line: None, quiet=True
    )


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_reference_and_tokenizer_load(demo):
    model = AutoModelForCausalLM.from_pretrained(demo.model)
    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_tokenizer_gives_texts_back_and_splits_where_a_prompt_ends(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    texts = reviews(40, 7)
    for text, prompt in zip(texts, prompts_from(texts, 1), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        before = tokenizer(prompt)["input_ids"]
        assert ids[: len(before)] == before


def test_prompts_are_four_to_eight_words_and_leave_something_to_say():
    texts = reviews(200, 0)
    for text, prompt in zip(texts, prompts_from(texts, 3), strict=True):
        assert text.startswith(prompt + " ")
        assert len(prompt.split()) <= 8
    assert {len(p.split()) for p in prompts_from(texts, 3)} >= {4, 5, 6, 7, 8}


def test_pairs_are_usable(demo):
    for path in (demo.train, demo.heldout):
        rows = read_jsonl(path)
        assert rows
        for row in rows:
            assert set(row) == {"prompt", "chosen", "rejected"}
            assert row["chosen"] != row["rejected"]
            assert row["prompt"].strip()
            assert row["chosen"].strip()
            assert row["rejected"].strip()
    assert all(set(row) == {"prompt"} for row in read_jsonl(demo.prompts))


def test_same_seed_gives_the_same_folder(demo, tmp_path):
    again = prepare(tmp_path / "again", seed=0, size="tiny", echo=lambda line: None, quiet=True)
    assert _digests(again.path) == _digests(demo.path)


def test_labels_follow_the_reward_more_often_than_not(demo):
    # A reference of a few steps hardly writes opinions, so the labels are tried on a judge's own texts.
    assert preference(0.0, 0.15) == 0.5
    assert preference(0.15, 0.15) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference(0.5, 0.15) + preference(-0.5, 0.15) == pytest.approx(1)
    assert preference(-300.0, 0.15) == pytest.approx(0)
    model, tokenizer = _Recites(reviews(600, 5), demo), AutoTokenizer.from_pretrained(demo.model)
    rows = sample_pairs(model, tokenizer, ["I"] * 300, temperature=0.15, seed=2, what="sampling", quiet=True)
    assert len(rows) > 250
    assert 0.75 < agreement(rows) < 0.98
    noiseless = sample_pairs(
        model, tokenizer, ["I"] * 300, temperature=1e-3, seed=2, what="sampling", quiet=True
    )
    assert agreement(noiseless) > 0.98


class _Recites:
    """Stands in for a good model: continues every prompt with a review of the grammar."""

    def __init__(self, texts, demo):
        self.tokenizer = AutoTokenizer.from_pretrained(demo.model)
        self.texts = texts

    def generate(self, input_ids, **kwargs):
        picks = torch.randint(len(self.texts), (len(input_ids),)).tolist()
        rows = [
            [*self.tokenizer(" " + self.texts[i])["input_ids"][1:], self.tokenizer.eos_token_id]
            for i in picks
        ]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        return torch.cat([input_ids, torch.tensor([row + [pad] * (width - len(row)) for row in rows])], dim=1)


def test_sampling_leaves_the_global_random_state(demo):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(demo.model),
        AutoTokenizer.from_pretrained(demo.model),
    )
    state = torch.random.get_rng_state()
    rows = [
        sample_pairs(model, tokenizer, ["The plot is"], temperature=0.15, seed=seed, what="s", quiet=True)
        for seed in (1, 1)
    ]
    assert rows[0] == rows[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_config_is_one_that_both_stages_take(demo):
    build = build_config({"ref": "model"}, demo.config)
    assert (build.dataset, build.head, build.tail) == (["data/train.jsonl"], 8, 8)
    fit = fit_config({"plugin": "tdpo2"}, demo.config)
    assert fit.set == {"beta": 0.1}
    assert fit.learning_rate == pytest.approx(1e-3)
    assert fit.eval_cache == ["tdpo-cache-heldout"]


def test_prepared_folder_is_used_again(demo):
    before = _digests(demo.path)
    said: list[str] = []
    prepare(demo.path, seed=0, size="tiny", echo=said.append, quiet=True)
    assert _digests(demo.path) == before
    assert "used again" in said[0]


def test_cut_off_preparation_goes_on(demo, tmp_path):
    import shutil

    folder = tmp_path / "cut"
    shutil.copytree(demo.path, folder)
    marker = json.loads((folder / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps({**marker, "finished": ["model"]}))
    shutil.rmtree(folder / "data")
    prepare(folder, seed=0, size="tiny", echo=lambda line: None, quiet=True)
    assert _digests(folder) == _digests(demo.path)


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no demonstration"):
        prepare(tmp_path, size="tiny")
    assert _digests(tmp_path).keys() == {"thesis.txt"}


def test_demonstration_of_another_seed_is_refused(demo):
    with pytest.raises(ConfigError, match="seed 0"):
        prepare(demo.path, seed=5, size="tiny")


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        prepare(tmp_path / "file", size="tiny")


def test_rewards_of_the_pairs_are_those_of_whole_reviews():
    row = {"prompt": "The plot is not", "chosen": " superb.", "rejected": " awful."}
    # Negation in the prompt turns the completions round: the judge reads both together.
    assert sentiment(row["prompt"] + row["chosen"]) < sentiment(row["prompt"] + row["rejected"])
    assert agreement([row]) == 0
