"""Fitting from a cache and what was added to it: nothing is copied, and losses are the formula's."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from added_plugin import Contrast, Hooks, TwoReferences
from support import make_model, make_tokenizer, run_tdpo

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.joining import join_scores
from tdpo.core.registry import plugin_manager
from tdpo.core.training.data import CachedPairs, EpochSampler, collate

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """The test plugin, registered as an installed one would be."""
    plugin_manager().register(Hooks, name="added 1.0")
    yield
    plugin_manager().unregister(Hooks)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("positive", "negative"), start=1):
        make_model(len(make_tokenizer()), seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def rich(tmp_path_factory, cache, models):
    """The cache with scores of every kind. Treat as read-only."""
    folder = shutil.copytree(cache, tmp_path_factory.mktemp("rich") / "cache")
    for name, options in {
        "tis": {"positive": models / "positive", "negative": models / "negative"},
        "second": {"ref": models / "positive"},
        "whole": {"head": 10_000},
        "embedding": {"statistic": "prompt-embedding"},
        "lengths": {"statistic": "lengths"},
    }.items():
        tdpo.add_statistics(folder, name, quiet=True, **options)
    return folder


class Needs:
    """An objective as far as joining looks at it."""

    def __init__(self, *names):
        self.needs = frozenset(names)


def joined(folder, *needs, **options):
    config = FitConfig(plugin="x", cache=str(folder), **options)
    return join_scores(config, Needs(*needs), tdpo.open_cache(folder), {})[0]


def logp(model, pair, side):
    """Log-probs [T, V] of one whole sequence."""
    prompt, ids = pair.prompt_ids.tolist(), pair.ids(side).tolist()
    return model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def at_labels(log_p, pair, side):
    ids = pair.ids(side).astype(np.int64)
    return log_p[torch.arange(len(ids)), torch.from_numpy(ids)]


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


def perturbed(folder, seed=0):
    model, generator = load(folder).float(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def sides_of(policy, reader, rows):
    """What an objective is given of some rows."""
    from tdpo.core.scoring.completions import completions
    from tdpo.core.scoring.forward import enable_scoring

    enable_scoring(policy)
    batch = collate(CachedPairs(reader).__getitems__(rows))
    names = ("input_ids", "attention_mask", "score_positions", "score_ids")
    scores = policy(**{name: batch[name] for name in names})
    return completions(
        scores,
        batch,
        head=reader.head,
        vocab_size=reader.vocab_size,
        estimator="fitted",
        kl_gradient=True,
    )


def test_added_values_come_to_the_side_and_token_they_belong_to(rich, reference):
    needs = (
        "positive_logp",
        "tis.negative_logp",
        "second.ref_logp",
        "prompt_embedding",
        "characters",
        "first",
    )
    reader = joined(rich, *needs)
    rows = [40, 3, 17, 29]
    chosen, rejected = sides_of(perturbed(reference), reader, rows)
    records = tdpo.open_cache(rich).read(rows)
    for side, name in zip((chosen, rejected), SIDES, strict=True):
        width = side.mask.shape[1]
        assert side.added("tis.negative_logp").shape == (4, width)
        assert side.added("first").shape == (4, width, 2)
        assert side.added("prompt_embedding").shape == (4, 32)
        assert side.added("characters").tolist() == [[3 * len(one.pair.ids(name))] for one in records]
        assert side.added("characters").dtype == torch.int64
        stored = tdpo.open_scores(rich, "tis").read([one.pair for one in records])
        for at, values in enumerate(stored[f"{name}_positive_logp"]):
            got = side.added("positive_logp")[at][side.mask[at]]
            np.testing.assert_array_equal(got.numpy(), values)
            assert side.added("first")[at][side.mask[at]][:, 1].tolist() == [
                2 * i for i in range(len(values))
            ]
    torch.testing.assert_close(chosen.added("prompt_embedding"), rejected.added("prompt_embedding"))


def test_what_needs_does_not_name_is_not_there(rich, reference):
    chosen, _ = sides_of(perturbed(reference), joined(rich, "positive_logp"), [0])
    with pytest.raises(ValueError, match="'negative_logp' was not read; name it in the objective's `needs`"):
        chosen.added("negative_logp")


def test_a_contrastive_loss_is_that_of_the_formula(rich, reference, models):
    """Against four models in memory, in float64, one sequence at a time."""
    policy, rows = perturbed(reference), [5, 44, 20]
    loss = Contrast(beta=0.3)(*sides_of(policy, joined(rich, *Contrast.needs), rows)).loss
    policy, ref = perturbed(reference).double(), load(reference)
    positive, negative = load(models / "positive"), load(models / "negative")
    for at, record in enumerate(tdpo.open_cache(rich).read(rows)):
        u = 0
        for side, sign in zip(SIDES, (1, -1), strict=True):
            a, b, p, q = (
                at_labels(logp(model, record.pair, side), record.pair, side)
                for model in (positive, negative, ref, policy)
            )
            u += sign * (torch.exp(sign * (a - b).clamp(-0.5, 1.5)) * (q - p)).sum()
        want = -torch.nn.functional.logsigmoid(0.3 * u)
        torch.testing.assert_close(loss[at].double(), want, rtol=2e-4, atol=2e-4)


def test_a_larger_sample_takes_the_place_of_the_caches(rich, reference):
    """With all of the vocabulary in it the forward KL is exact, which the cache's own sample is not."""
    reader, rows = joined(rich, "forward_kl", reference="whole"), [5, 44, 20]
    assert (reader.head, reader.tail) == (reader.vocab_size, 0)
    sides = sides_of(perturbed(reference), reader, rows)
    policy, ref = perturbed(reference).double(), load(reference)
    for at, record in enumerate(tdpo.open_cache(rich).read(rows)):
        for side, name in zip(sides, SIDES, strict=True):
            p, q = (logp(model, record.pair, name) for model in (ref, policy))
            want = (p.exp() * (p - q)).sum()
            got = side.sum(side.forward_kl)[at].double()
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
            np.testing.assert_array_equal(
                side.ref_logp[at][side.mask[at]].detach().numpy(), getattr(record, name).ref_logp
            )


def test_a_second_reference_takes_the_place_of_the_first(rich, models, tmp_path):
    """The policy starts at it, and the log-ratios are zero."""
    reader = joined(rich, reference="second")
    record = tdpo.open_cache(rich)[7]
    want = at_labels(logp(load(models / "positive"), record.pair, "chosen"), record.pair, "chosen")
    np.testing.assert_allclose(reader[7].chosen.ref_logp, want.detach(), atol=2e-5)
    assert reader.statistics == {"ref_logp"}
    result = tdpo.fit(
        "dpo",
        rich,
        reference="second",
        output=str(tmp_path / "run"),
        max_steps=1,
        logging_steps=1,
        quiet=True,
    )
    assert result.metrics["loss"] == pytest.approx(np.log(2), abs=1e-4)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "--reference second" in card


def test_a_cache_without_a_sample_is_trained_with_the_one_added(tmp_path, reference, pairs):
    tdpo.build_cache(reference, pairs, tmp_path / "cache", head=0, tail=0, quiet=True)
    with pytest.raises(tdpo.CacheError, match=r"holds no sample.*tdpo cache add DIR --name sample --head 8"):
        tdpo.fit("tdpo2", tmp_path / "cache", output=str(tmp_path / "run"), quiet=True)
    tdpo.add_statistics(tmp_path / "cache", "sample", head=4, tail=4, quiet=True)
    result = tdpo.fit(
        "tdpo2", tmp_path / "cache", output=str(tmp_path / "run"), max_steps=1, logging_steps=1, quiet=True
    )
    assert result.metrics["kl/chosen"] == pytest.approx(0, abs=1e-2)


def test_fit_trains_with_a_plugins_objective_from_base_and_scores(rich, models, reference, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in rich.rglob("*")}
    result = tdpo.fit(
        "contrast", rich, output=str(tmp_path / "run"), max_steps=6, learning_rate=1e-3, logging_steps=1,
        set={"beta": 0.5}, quiet=True, eval_cache=str(rich),
    )  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [event["loss"] for event in map(json.loads, lines) if "loss" in event]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert losses[-1] < losses[0] - 0.01
    assert np.isfinite(result.metrics["eval_loss"])
    assert {path: path.stat().st_mtime_ns for path in rich.rglob("*")} == before
    # A step later the loss is the formula's on the weights of that step: two references and an embedding.
    result = tdpo.fit(
        "two", rich, output=str(tmp_path / "two"), max_steps=1, batch_size=4, logging_steps=1, quiet=True
    )
    rows = list(EpochSampler(tdpo.open_cache(rich), 0))[:4]
    chosen, rejected = sides_of(load(reference).float(), joined(rich, *TwoReferences.needs), rows)
    want = TwoReferences()(chosen, rejected).loss.mean()
    assert result.metrics["loss"] == pytest.approx(want.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("needs", "options", "message"),
    [
        (["negative_logp"], {"scores": "second"}, r"lacks: add it with tdpo cache add .* --positive MODEL"),
        (["third.ref_logp"], {}, r"'third.ref_logp', which .* lacks: .* --name third --ref MODEL"),
        (["second.ref_entropy"], {}, "--name second --ref MODEL --entropy"),
        (["surprisal"], {}, "--name surprisal --statistic surprisal"),
        (["charakters"], {}, "did you mean 'characters'"),
        (["entropie"], {}, "did you mean 'entropy'"),
        ([], {"scores": "tiz"}, "has no scores 'tiz'; did you mean 'tis'"),
        ([], {"reference": "nothing"}, "has no scores 'nothing'"),
        ([], {"reference": "tis"}, "are of kind contrast"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_said_in_a_line(rich, needs, options, message):
    with pytest.raises(tdpo.TdpoError, match=message) as caught:
        joined(rich, *needs, **options)
    assert "\n" not in str(caught.value)


def test_two_sets_with_the_same_column_are_told_apart(rich, tmp_path, models):
    folder = shutil.copytree(rich, tmp_path / "cache")
    tdpo.add_statistics(folder, "prompts", positive_prompt="good", negative_prompt="bad", quiet=True)
    with pytest.raises(tdpo.TdpoError, match=r"scores tis and prompts of .* hold: choose with --scores tis"):
        joined(folder, "positive_logp")
    of_tis = joined(folder, "positive_logp", scores="tis")[3]
    of_both = joined(folder, "tis.positive_logp", "prompts.positive_logp")[3]
    np.testing.assert_array_equal(
        of_tis.added["positive_logp"].chosen, of_both.added["tis.positive_logp"].chosen
    )
    assert (of_tis.added["positive_logp"].chosen != of_both.added["prompts.positive_logp"].chosen).any()


def test_a_reference_without_what_the_objective_needs_is_refused(rich, tmp_path):
    with pytest.raises(tdpo.TdpoError, match=r"--reference second: these scores of .* hold no sample"):
        tdpo.fit("tdpo2", rich, reference="second", output=str(tmp_path / "run"), quiet=True)


def test_the_evaluation_cache_needs_the_same_scores(rich, cache, tmp_path, models):
    with pytest.raises(tdpo.TdpoError, match=r"--eval-cache .* lacks"):
        tdpo.fit("contrast", rich, output=str(tmp_path / "run"), eval_cache=str(cache), quiet=True)
    other = shutil.copytree(cache, tmp_path / "other")
    tdpo.add_statistics(other, "tis", positive=models / "negative", negative=models / "positive", quiet=True)
    with pytest.raises(tdpo.TdpoError, match="its scores tis are not made as those of --cache"):
        tdpo.fit("contrast", rich, output=str(tmp_path / "run"), eval_cache=str(other), quiet=True)


def test_workers_join_as_the_main_process_does(rich):
    from torch.utils.data import DataLoader

    reader = joined(rich, "positive_logp", "prompt_embedding", reference="whole")
    data = CachedPairs(reader)
    here = [collate(data.__getitems__(list(range(start, start + 16)))) for start in (0, 16, 32)]
    there = DataLoader(data, 16, collate_fn=collate, num_workers=2, multiprocessing_context="spawn")
    for ours, theirs in zip(here, there, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


@pytest.mark.slow
def test_an_installed_plugin_adds_and_trains_through_the_command_line(tmp_path, cache):
    site = tmp_path / "site"
    info = site / "added-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "added_plugin.py", site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tdpo]\nadded = added_plugin:Hooks\n")
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}
    folder = shutil.copytree(cache, tmp_path / "cache")
    for name, more in (("bits", ["--statistic", "surprisal"]), ("tis", [
        "--positive-prompt", "good great ", "--negative-prompt", "bad ",
    ])):  # fmt: skip
        run_tdpo("cache", "add", folder, "--name", name, *more, env=env)
    run = run_tdpo(
        *("fit", "--plugin", "contrast", "--cache", folder, "--scores", "tis", "--max-steps", "2"),
        *("--output", tmp_path / "run"),
        env=env,
    )
    assert "trained for 2 steps" in run.stdout
    entry = json.loads((folder / "manifest.json").read_text())["scores"]["bits"]
    assert entry["provenance"]["distribution"] == "added 1.0"
