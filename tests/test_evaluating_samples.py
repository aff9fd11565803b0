"""What policies say, measured: every figure from its definition, and what is compared with what."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import make_model, make_tokenizer

import tdpo
from tdpo.core.evaluating.sample_figures import sample_names
from tdpo.core.evaluating.samples import Drawing, prompt_text, sample
from tdpo.core.scoring.sequences import SequenceScorer

REWARDS = """
def good(prompts, completions):
    assert len(prompts) == len(completions) <= 5
    return [text.count("o") - 0.1 * len(text) for text in completions]

def broken(prompts, completions):
    raise KeyError("no such thing")
"""

OPTIONS = {
    "generate": 6,
    "samples_per_prompt": 2,
    "max_tokens": 8,
    "batch_size": 5,
    "bootstrap": 50,
    "limit": 4,
    "quiet": True,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory, reference):
    """Another model of the reference's vocabulary, some way from it."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    shutil.copytree(reference, folder)
    model = make_model(len(make_tokenizer()))
    with torch.no_grad():
        model.lm_head.weight.add_(0.3 * make_model(len(make_tokenizer()), seed=1).lm_head.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with rewards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges_of_samples.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


JUDGED = {**OPTIONS, "reward": "judges_of_samples:good"}


def evaluate(*models, cache, **options):
    return tdpo.evaluate(*models, cache=[str(cache)], **options)


def figures(found, at=0):
    return {name: one["value"] for name, one in found.document["evaluations"][at]["figures"].items()}


def rows(folder, **wanted):
    table = pq.read_table(folder / "samples.parquet").to_pylist()
    return [row for row in table if all(row[name] == value for name, value in wanted.items())]


def by_prompt(values, times=2):
    return np.array(values).reshape(-1, times)


def test_every_figure_is_what_the_file_of_samples_says(reference, policy, cache, folder):
    options = {**JUDGED, "against": "chosen"}
    found = evaluate(policy, cache=cache, out="out", **options)
    own, theirs = rows(folder / "out", drawn_from="policy"), rows(folder / "out", drawn_from="reference")
    chosen = rows(folder / "out", drawn_from="chosen")
    assert (len(own), len(theirs), len(chosen)) == (12, 12, 6)
    assert found.samples.to_pylist() == rows(folder / "out")
    reader = tdpo.open_cache(cache)
    pairs = {one.pair.pair_id: one.pair for one in reader}
    assert [row["pair_id"] for row in chosen] == [one.pair.pair_id for one in reader][:6]
    got = figures(found)
    mean = {name: np.mean([row[name] for row in own]) for name in ("kl", "reverse_kl", "log_ratio", "tokens")}
    assert {name: got[f"samples/{name}"] for name in mean} == pytest.approx(mean)
    tokens = np.array([row["tokens"] for row in own])
    assert got["samples/entropy"] == pytest.approx(
        (np.array([row["entropy"] for row in own]) * tokens).sum() / tokens.sum()
    )
    assert got["samples/finished"] == np.mean([row["finished"] for row in own])
    ours, refs = by_prompt([row["reward"] for row in own]), by_prompt([row["reward"] for row in theirs])
    given = by_prompt([row["reward"] for row in chosen], 1)
    assert got["samples/reward"] == pytest.approx(ours.mean())
    for name, others in (("reference", refs), ("against", given)):
        assert got[f"samples/reward/{name}"] == pytest.approx(others.mean())
        assert got[f"samples/reward_difference/{name}"] == pytest.approx(ours.mean() - others.mean())
        apart = ours[:, :, None] - others[:, None, :]
        rate = ((apart > 0) + 0.5 * (apart == 0)).mean()
        assert got[f"samples/win_rate/{name}"] == pytest.approx(rate)
    said = [row["completion_ids"][: -1 if row["finished"] else None] for row in own]
    assert got["samples/distinct_1"] == len({t for one in said for t in one}) / sum(map(len, said))
    assert got["samples/unique"] == len({tuple(one) for one in said}) / 12
    for name, one in found.document["evaluations"][0]["figures"].items():
        if name.startswith("samples/"):
            varied = name.startswith(("samples/distinct", "samples/unique"))
            assert (one["low"] is None) == varied, name
    known = sample_names(reward=True, reference=True, against=True)
    assert {name for name in got if name.startswith("samples/")} <= set(known)
    tokenizer = make_tokenizer()
    for row in [*own, *theirs]:
        assert row["completion"] == tokenizer.decode(row["completion_ids"], skip_special_tokens=True)
        assert row["prompt"] == tokenizer.decode(pairs[row["pair_id"]].prompt_ids)
        assert row["reward"] == row["completion"].count("o") - 0.1 * len(row["completion"])


def test_the_kl_of_samples_is_exact(reference, policy, cache, folder):
    evaluate(policy, cache=cache, out="out", **OPTIONS)
    pairs = {one.pair.pair_id: one.pair for one in tdpo.open_cache(cache)}
    models = [
        make_model(len(make_tokenizer())).from_pretrained(place).double().eval()
        for place in (policy, reference)
    ]
    for row in rows(folder / "out", drawn_from="policy"):
        prompt, ids = pairs[row["pair_id"]].prompt_ids.tolist(), row["completion_ids"]
        with torch.no_grad():
            log_q, log_p = (
                model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for model in models
            )
        at = (range(len(ids)), ids)
        assert row["kl"] == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=1e-4)
        assert row["reverse_kl"] == pytest.approx((log_q.exp() * (log_q - log_p)).sum().item(), rel=1e-4)
        assert row["log_ratio"] == pytest.approx((log_q[at] - log_p[at]).sum().item(), rel=1e-4, abs=1e-4)
        assert row["kl"] > 0


def test_a_reference_says_and_earns_what_the_reference_does(reference, cache, folder):
    found = evaluate(reference, cache=cache, out="out", **{**JUDGED, "against": str(reference)})
    got = figures(found)
    for name in ("kl", "reverse_kl", "log_ratio", "reward_difference/reference", "reward_difference/against"):
        assert got[f"samples/{name}"] == pytest.approx(0, abs=1e-12)
    for name in ("reference", "against"):
        rewards = by_prompt([row["reward"] for row in rows(folder / "out", drawn_from="policy")])
        # The same samples, each of which also meets the other one of its prompt.
        apart = rewards[:, :, None] - rewards[:, None, :]
        assert got[f"samples/win_rate/{name}"] == ((apart > 0) + 0.5 * (apart == 0)).mean() == 0.5
    said = [[row["completion_ids"] for row in rows(folder / "out", drawn_from=kind)]
            for kind in ("policy", "reference", "against")]  # fmt: skip
    assert said[0] == said[1] == said[2]


def test_samples_depend_on_the_seed_alone(policy, cache, folder):
    drawn = {}
    for name, options in (
        ("a", {}), ("b", {"batch_size": 3}), ("c", {"generate": 4}), ("d", {"seed": 1}),
    ):  # fmt: skip
        evaluate(policy, cache=cache, out=name, **{**OPTIONS, **options})
        drawn[name] = [row["completion_ids"] for row in rows(folder / name, drawn_from="policy")]
    assert drawn["a"] == drawn["b"] != drawn["d"]
    assert drawn["c"] == drawn["a"][:8]


def test_policies_are_compared_on_the_same_prompts(reference, policy, cache, folder):
    found = evaluate(reference, policy, cache=cache, out="out", **JUDGED)
    (comparison,) = found.document["comparisons"]
    a, b = figures(found, 0), figures(found, 1)
    for name in ("samples/reward", "samples/kl", "samples/tokens", "samples/distinct_2"):
        assert comparison["figures"][name]["value"] == pytest.approx(b[name] - a[name])
    kl = comparison["figures"]["samples/kl"]
    assert (kl["count"], kl["prompts"]) == (12, 6)
    assert 0 < kl["low"] <= kl["value"] <= kl["high"]
    # The reference is sampled once for both.
    assert len(rows(folder / "out", drawn_from="reference")) == 12
    assert len(rows(folder / "out")) == 36


def test_slices_and_checks_hold_the_figures_of_samples(policy, cache, folder):
    options = {**JUDGED, "limit": None, "slice": ["prompt_tokens=2"], "metric": ["samples/*", "loss"]}
    options["require"] = ["samples/kl>0", "samples/finished>2"]
    found = evaluate(policy, cache=cache, out="out", **options)
    assert [check["passed"] for check in found.document["checks"]] == [True, False]
    (one,) = found.document["evaluations"]
    assert sum(part["figures"]["samples/reward"]["count"] for part in one["slices"]) == 12
    lengths = {each.pair.pair_id: len(each.pair.prompt_ids) for each in tdpo.open_cache(cache)}
    own = rows(folder / "out", drawn_from="policy")
    bound = float(one["slices"][0]["label"].split(" to ")[-1])
    short = [row["kl"] for row in own if lengths[row["pair_id"]] <= bound]
    assert one["slices"][0]["figures"]["samples/kl"]["value"] == pytest.approx(np.mean(short))


def test_where_the_reference_is_gone_the_rest_is_measured(policy, cache, folder):
    shutil.copytree(cache, folder / "moved")
    manifest = json.loads((folder / "moved" / "manifest.json").read_text())
    manifest["provenance"]["reference"] = "gone/model"
    (folder / "moved" / "manifest.json").write_text(json.dumps(manifest))
    found = evaluate(policy, cache=folder / "moved", **{**JUDGED, "against": "chosen"})
    got = figures(found)
    assert "samples/kl" not in got
    assert not any(name.endswith("/reference") for name in got)
    assert got["samples/entropy"] > 0
    assert 0 <= got["samples/win_rate/against"] <= 1
    (note,) = [n for n in found.document["evaluations"][0]["notes"] if "samples" in n]
    assert "gone/model" in note
    assert "--reference-model" in note
    with pytest.raises(tdpo.TdpoError, match="no such figure"):
        evaluate(policy, cache=folder / "moved", **JUDGED, metric=["samples/kl"])


def test_a_reference_can_be_named(reference, policy, cache, folder):
    named = evaluate(reference, cache=cache, reference_model=str(policy), **OPTIONS)
    assert figures(named)["samples/kl"] > 0
    (folder / "empty").mkdir()
    with pytest.raises(tdpo.TdpoError, match="--reference-model empty: holds no model"):
        evaluate(reference, cache=cache, reference_model="empty", **OPTIONS)


def test_prompts_that_leave_a_model_no_position_are_left_out(policy, cache, folder):
    lengths = sorted({len(one.pair.prompt_ids) for one in tdpo.open_cache(cache)})
    short = make_model(len(make_tokenizer()), max_position_embeddings=lengths[-1])
    make_tokenizer().save_pretrained(folder / "short")
    short.save_pretrained(folder / "short")
    few = {"generate": 100, "samples_per_prompt": 1, "max_tokens": 1, "batch_size": 5}
    found = evaluate(policy, cache=cache, **{**JUDGED, **few, "against": "short"})
    (one,) = found.document["evaluations"]
    fits = {
        each.pair.prompt_ids.tobytes()
        for each in tdpo.open_cache(cache)
        if len(each.pair.prompt_ids) < lengths[-1]
    }
    assert one["figures"]["samples/tokens"]["prompts"] == len(fits)
    notes = " ".join(one["notes"])
    assert f"{lengths[-1]} tokens or more were left out" in notes
    assert f"samples are of {len(fits)} prompts, of 100 asked for" in notes


def test_a_prompts_text_is_what_was_written():
    tokenizer = make_tokenizer(extra=("<|user|>",))
    for text in ("the film was", "<|user|>the film", " two  spaces"):
        ids = tokenizer(text)["input_ids"]
        assert prompt_text(tokenizer, ids) == text
        assert prompt_text(tokenizer, [tokenizer.bos_token_id, *ids]) == text


def test_the_parts_serve_alone(reference, policy):
    """As an experiment over many policies uses them: no cache, no files."""
    tokenizer = make_tokenizer()
    models = [make_model(len(tokenizer)).from_pretrained(place).eval() for place in (policy, reference)]
    prompts = [tokenizer(text)["input_ids"] for text in ("the film was good", "a plot", "I loved")]
    drawn = sample(
        models[0],
        tokenizer,
        prompts,
        Drawing(per_prompt=3, max_tokens=6),
        scorer=SequenceScorer(*models),
        reward=lambda prompts, completions: [float(len(text)) for text in completions],
        quiet=True,
    )
    assert drawn.rewards.shape == (3, 3)
    assert drawn.rewards.ravel().tolist() == [len(text) for text in drawn.texts]
    assert drawn.sums("forward_kl").shape == (9,)
    assert (drawn.sums("reverse_kl") > 0).all()
    with pytest.raises(ValueError, match="no forward_kl"):
        sample(models[0], tokenizer, prompts, Drawing(max_tokens=2), quiet=True).sums("forward_kl")


def test_the_monte_carlo_estimate_is_that_of_the_exact_kl():
    tokenizer = make_tokenizer()
    policy, reference = make_model(len(tokenizer)), make_model(len(tokenizer))
    with torch.no_grad():
        policy.lm_head.weight.mul_(0.8)
    drawing = Drawing(per_prompt=600, max_tokens=4, batch_size=600)
    drawn = sample(
        policy, tokenizer, [[5, 6, 7]], drawing, scorer=SequenceScorer(policy, reference), quiet=True
    )
    ratio = drawn.sums("logp") - drawn.sums("ref_logp")
    exact = drawn.sums("reverse_kl").mean()
    assert abs(ratio.mean() - exact) < 4 * ratio.std() / 600**0.5 < 0.2 * exact + 0.1
