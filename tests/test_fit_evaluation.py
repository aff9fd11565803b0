"""Evaluating while training: figures that are exact, the checkpoint that is best, and when to stop."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import run_tdpo, write_pairs

import tdpo
from tdpo.core.config.evaluation import eval_caches, selection
from tdpo.core.config.fit import FitConfig
from tdpo.core.training.evaluation import EvaluationBatches
from tdpo.core.training.log import summary_line
from tdpo.core.training.metrics import Means, TokenMean


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, reference):
    """A cache of 13 other pairs that holds whole distributions: its divergences are exact."""
    folder = tmp_path_factory.mktemp("held-out")
    pairs = write_pairs(folder / "pairs.jsonl", 13, seed=5)
    tdpo.build_cache(reference, pairs, folder / "cache", distribution="exact", quiet=True)
    return folder / "cache"


@pytest.fixture(scope="module")
def train(tmp_path_factory, reference, pairs):
    """A cache to train from, made as ``held_out`` is."""
    folder = tmp_path_factory.mktemp("train") / "cache"
    tdpo.build_cache(reference, pairs, folder, distribution="exact", quiet=True)
    return folder


def fit(cache, output, **options):
    values = {"learning_rate": 1e-2, "logging_steps": 1, "batch_size": 8, "quiet": True, **options}
    return tdpo.fit("tdpo2", cache, output=str(output), **values)


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluations(folder, figure):
    """Step -> value of a figure of the evaluations."""
    return {event["step"]: event[figure] for event in events(folder) if figure in event}


def weights(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0, msg=name)


def by_hand(policy, reference, cache):
    """The figures of tdpo2 (beta 0.1, alpha 0.5) on a cache, in float64 from both models' full logits."""
    from transformers import AutoModelForCausalLM

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder).double().eval() for folder in (policy, reference)
    )
    rows, entropy, tokens = [], 0.0, 0
    for record in tdpo.open_cache(cache).read(range(len(tdpo.open_cache(cache)))):
        logp, ratio, kl = {}, {}, {}
        for side in ("chosen", "rejected"):
            prompt, ids = record.pair.prompt_ids.tolist(), record.pair.ids(side).tolist()
            with torch.no_grad():
                q, p = (
                    model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                    for model in (policy, reference)
                )
            at = torch.arange(len(ids)), torch.tensor(ids)
            logp[side] = float(q[at].sum())
            ratio[side] = float((q - p)[at].sum())
            kl[side] = float((p.exp() * (p - q)).sum())
            entropy -= float((q.exp() * q).sum())
            tokens += len(ids)
        logit = 0.1 * (ratio["chosen"] - ratio["rejected"] - 0.5 * (kl["rejected"] - kl["chosen"]))
        # The paper's released code logs these.
        rewards = {side: 0.1 * (ratio[side] + kl[side]) for side in ratio}
        margin = rewards["chosen"] - rewards["rejected"]
        rows.append(
            {
                "loss": math.log1p(math.exp(-logit)),
                "rewards/accuracies": float(margin > 0),
                "rewards/margins": margin,
                "kl/margin": kl["rejected"] - kl["chosen"],
                **{f"rewards/{side}": rewards[side] for side in rewards},
                **{f"logps/{side}": logp[side] for side in logp},
                **{f"kl/{side}": kl[side] for side in kl},
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | {
        "entropy": entropy / tokens
    }


@pytest.mark.parametrize("batch_size", [4, 13])
def test_the_figures_are_those_of_both_models_whole_distributions(
    tmp_path, train, held_out, reference, batch_size
):
    """Also where the last batch is shorter than the others."""
    fit(
        train,
        tmp_path / "run",
        eval_cache=str(held_out),
        max_steps=3,
        batch_size=batch_size,
        learning_rate=1e-3,
    )
    wanted = by_hand(tmp_path / "run", reference, held_out)
    last = events(tmp_path / "run")[-2]
    assert last["step"] == 3
    assert {name.removeprefix("eval_") for name in last if name.startswith("eval_")} >= wanted.keys()
    for name, value in wanted.items():
        assert last[f"eval_{name}"] == pytest.approx(value, rel=1e-6, abs=2e-6), name


def test_before_training_the_policy_is_the_reference(tmp_path, train, held_out):
    fit(train, tmp_path / "run", eval_cache=str(held_out), max_steps=1)
    first = events(tmp_path / "run")[0]
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["eval_kl/chosen"] == pytest.approx(0, abs=1e-4)


def test_several_caches_are_evaluated_under_their_names(tmp_path, train, held_out):
    fit(train, tmp_path / "one", eval_cache=str(held_out), max_steps=2)
    result = fit(train, tmp_path / "two", eval_cache=[f"dev={held_out}", f"seen={train}"], max_steps=2)
    alone = {k: v for k, v in events(tmp_path / "one")[-2].items() if "/" in k or "loss" in k}
    both = {k: v for event in events(tmp_path / "two")[-3:-1] for k, v in event.items()}
    for name, value in alone.items():
        assert both[name.replace("eval_", "eval_dev_")] == value
        assert name.replace("eval_", "eval_seen_") in both
    assert result.metrics["eval_dev_loss"] == alone["eval_loss"]
    card = (tmp_path / "two" / "README.md").read_text()
    assert "| eval_seen_loss |" in card
    assert f"--eval-cache dev={held_out} --eval-cache seen={train}" in card


def test_names_of_evaluation_caches():
    assert eval_caches([]) == {}
    assert eval_caches(["data/held out"]) == {"": "data/held out"}
    assert eval_caches(["dev=a", "test=b"]) == {"dev": "a", "test": "b"}
    assert eval_caches(["s3://bucket/dev=1/cache/", "hub=hf://b"]) == {
        "cache": "s3://bucket/dev=1/cache/",
        "hub": "hf://b",
    }
    assert eval_caches(["./dev=1"]) == {"": "./dev=1"}
    with pytest.raises(tdpo.TdpoError, match="another one is named 'cache'"):
        eval_caches(["a/cache", "b/cache"])


@given(rows=st.integers(1, 200), batch_size=st.integers(1, 20), processes=st.integers(1, 9))
def test_every_row_is_evaluated_once_by_one_process(rows, batch_size, processes):
    shares = [list(EvaluationBatches(rows, batch_size, rank, processes)) for rank in range(processes)]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(EvaluationBatches(rows, batch_size, 0, processes))
    assert all(len(batch) <= batch_size for share in shares for batch in share)


def all_processes(means):
    """What the first process gets when all hand in theirs."""
    handed = []
    for each in means[1:]:
        each.take(lambda own: handed.extend(own) or own)
    return means[0].take(lambda own: own + handed)


@given(
    values=st.lists(
        st.tuples(st.floats(-100, 100), st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=20
    ),
    cuts=st.lists(st.integers(0, 20), max_size=5),
    processes=st.integers(1, 3),
)
def test_means_do_not_depend_on_how_pairs_are_cut_up(values, cuts, processes):
    """Nor on the processes that they are spread over, some of which may have none."""
    means = [Means() for _ in range(processes)]
    edges = [0, *sorted(cuts), len(values)]
    for at, (start, end) in enumerate(pairwise(edges)):
        if values[start:end]:
            figure, total, tokens = torch.tensor(values[start:end], dtype=torch.float64).unbind(1)
            means[at % processes].add({"reward": figure, "entropy": TokenMean(total, tokens)})
    got = all_processes(means)
    assert got["reward"] == pytest.approx(sum(v for v, _, _ in values) / len(values), abs=1e-9)
    tokens = sum(n for _, _, n in values)
    assert got["entropy"] == pytest.approx(sum(v for _, v, _ in values) / tokens, abs=1e-9)
    assert all_processes(means) == {}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory, train, held_out):
    """A run whose held-out figures get worse from some step on, and its result."""
    folder = tmp_path_factory.mktemp("overfitted") / "run"
    return folder, fit(
        train, folder, eval_cache=f"dev={held_out}", best="eval_dev_loss", eval_steps=2, epochs=2
    )


def test_the_best_checkpoint_is_the_best_of_those_logged(overfitted):
    folder, result = overfitted
    losses = evaluations(folder, "eval_dev_loss")
    assert list(losses) == [0, 2, 4, 6, 8, 10, 12]
    # The start is no checkpoint.
    best = min((step for step in losses if step), key=losses.get)
    assert best != 12, "the run must get worse for this to say anything"
    assert result.best_step == best
    assert result.steps == 12
    assert result.metrics["eval_dev_loss"] == losses[best]
    assert_same_weights(folder, folder / f"checkpoint-{best}")
    assert weights(folder)["lm_head.weight"].ne(weights(folder / "checkpoint-12")["lm_head.weight"]).any()
    card = (folder / "README.md").read_text()
    assert f"The policy is that of step {best}, the best by `eval_dev_loss`" in card
    assert f"| eval_dev_loss | {losses[best]:.6g} |" in card


def test_a_larger_figure_may_be_the_better_one(tmp_path, train, held_out):
    options = {"best": "kl/margin", "best_mode": "max", "save_steps": 2, "max_steps": 6}
    result = fit(train, tmp_path / "run", eval_cache=str(held_out), **options)
    margins = evaluations(tmp_path / "run", "eval_kl/margin")
    assert list(margins) == [0, 2, 4, 6]
    assert result.best_step == max((step for step in margins if step), key=margins.get)


def steps_until(values, patience, threshold=0.0):
    """The step at which a run stops whose evaluations give these losses."""
    best, waited = math.inf, 0
    for step, value in values.items():
        waited = 0 if value < best - threshold or best == math.inf else waited + 1
        best = min(best, value)
        if waited == patience:
            return step
    return None


@pytest.mark.parametrize(("patience", "threshold"), [(2, 0.0), (1, 0.5)])
def test_early_stopping_stops_after_so_many_evaluations_without_improvement(
    tmp_path, train, held_out, overfitted, patience, threshold
):
    """The same run as without it, up to where it stops."""
    whole = evaluations(overfitted[0], "eval_dev_loss")
    result = fit(
        train, tmp_path / "run", eval_cache=f"dev={held_out}", best="eval_dev_loss", eval_steps=2, epochs=2,
        early_stopping=patience, early_stopping_threshold=threshold,
    )  # fmt: skip
    stop = steps_until({step: loss for step, loss in whole.items() if step}, patience, threshold)
    assert stop is not None
    assert result.steps == stop
    losses = evaluations(tmp_path / "run", "eval_dev_loss")
    assert losses == {step: loss for step, loss in whole.items() if step <= stop}
    assert result.best_step == min((step for step in losses if step), key=losses.get)
    assert_same_weights(tmp_path / "run", tmp_path / "run" / f"checkpoint-{result.best_step}")


def test_a_resumed_run_stops_early_where_the_whole_one_does(tmp_path, train, held_out):
    """The evaluations without improvement before the cut count, and nothing is evaluated twice."""
    options = {
        "eval_cache": str(held_out), "best": "loss", "eval_steps": 1, "epochs": 2, "early_stopping": 3,
        "training": {"save_total_limit": 20},
    }  # fmt: skip
    whole = fit(train, tmp_path / "whole", **options)
    assert 4 <= whole.steps < 12
    # Moved, too: the checkpoints' own paths lead to where the run was.
    cut, folder = whole.steps - 2, tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "model.safetensors").unlink()
    for step in range(cut + 1, 13):
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
    again = fit(train, folder, resume=True, **options)
    assert (again.steps, again.best_step) == (whole.steps, whole.best_step)
    assert_same_weights(tmp_path / "whole", folder)
    for figure in ("eval_loss", "loss", "num_tokens"):
        assert evaluations(folder, figure) == evaluations(tmp_path / "whole", figure)
    logged = [event["step"] for event in events(folder) if "eval_loss" in event]
    assert logged == sorted(set(logged))


def test_resuming_a_run_that_stopped_early_trains_nothing_more(tmp_path, train, held_out):
    options = {"eval_cache": str(held_out), "best": "loss", "eval_steps": 2, "epochs": 2, "early_stopping": 1}
    first = fit(train, tmp_path / "run", **options)
    assert first.steps < 12
    kept = weights(tmp_path / "run")
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "model.safetensors").unlink()
    again = fit(train, tmp_path / "run", resume=True, **options)
    assert again == first
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)


def test_evaluation_changes_nothing_that_is_trained(tmp_path, train, held_out):
    fit(train, tmp_path / "without", max_steps=4)
    fit(train, tmp_path / "with", max_steps=4, eval_cache=str(held_out), eval_steps=1)
    assert_same_weights(tmp_path / "without", tmp_path / "with")


def test_tokens_seen_are_counted_as_in_separate_sequences(tmp_path, train):
    """As TRL counts them: a prompt with each of its completions."""
    fit(train, tmp_path / "run", epochs=2, batch_size=20)
    pairs = [record.pair for record in tdpo.open_cache(train).read(range(48))]
    once = sum(2 * len(pair.prompt_ids) + pair.completion_tokens for pair in pairs)
    assert evaluations(tmp_path / "run", "num_tokens")[6] == 2 * once


@pytest.mark.parametrize(
    ("metric", "larger"),
    [
        ("eval_loss", False), ("loss", False), ("eval_kl/margin", False), ("kl/chosen", False),
        ("eval_rewards/accuracies", True), ("rewards/margins", True), ("eval_logps/chosen", True),
        ("eval_sft_loss", False),
    ],
)  # fmt: skip
def test_which_way_a_figure_is_better(metric, larger):
    found = selection(FitConfig("dpo", eval_cache=["held-out"], best=metric))
    assert found.larger is larger
    assert found.figure == "eval_" + metric.removeprefix("eval_")
    mode = "min" if larger else "max"
    assert selection(FitConfig("dpo", eval_cache=["d"], best=metric, best_mode=mode)).larger is not larger


def test_the_console_says_which_evaluation_a_line_is_of():
    figures = {"loss": 0.5, "rewards/accuracies": 0.75, "sft_loss": 9.0}
    assert summary_line(7, figures) == " step     7  loss 0.5000  accuracy 0.750"
    for prefix, label in (("eval_", " eval"), ("eval_dev_", "eval dev"), ("eval_my_set_", "eval my_set")):
        logged = {prefix + name: value for name, value in figures.items()}
        assert summary_line(7, logged) == f"{label}     7  loss 0.5000  accuracy 0.750"
    assert summary_line(7, {"train_runtime": 3.0}) is None


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path, train, held_out):
    """13 pairs in batches of 4: one process has 7, the other 6. A cache of one pair leaves a process idle."""
    write_pairs(tmp_path / "one.jsonl", 1, seed=9)
    reference = tdpo.open_cache(train).manifest.provenance["reference"]
    tdpo.build_cache(
        reference, tmp_path / "one.jsonl", tmp_path / "one-pair", distribution="exact", quiet=True
    )
    common = [
        "fit", "--plugin", "tdpo2", "--cache", train, "--eval-cache", f"dev={held_out}", "--eval-cache",
        f"one={tmp_path / 'one-pair'}", "--eval-steps", 2, "--max-steps", 4, "--learning-rate", "1e-2",
        "--best", "eval_dev_loss", "--samples", 2, "--sample-tokens", 5, "--batch-size",
    ]  # fmt: skip
    run_tdpo(*common, 8, "--output", tmp_path / "a")
    run_tdpo(*common, 4, "--num-processes", 2, "--output", tmp_path / "b")
    a, b = ([e for e in events(tmp_path / run) if any("eval_" in name for name in e)] for run in ("a", "b"))
    assert [event["step"] for event in a] == [event["step"] for event in b] == [0, 0, 2, 2, 4, 4]
    for x, y in zip(a[2:], b[2:], strict=True):
        assert x.keys() == y.keys()
        for name in x:
            if "runtime" not in name and "second" not in name:
                assert x[name] == pytest.approx(y[name], rel=1e-5, abs=1e-4), name
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(value, weights(tmp_path / "b")[name], rtol=0, atol=1e-4)
    assert (tmp_path / "a" / "samples.jsonl").read_text() == (tmp_path / "b" / "samples.jsonl").read_text()
