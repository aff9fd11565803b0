"""Fits whose loss draws or reads means over the run: the same run however its steps are cut up or resumed."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import make_model, make_tokenizer

import tdpo
from tdpo.core.runs.checkpoints import last_checkpoint, running_means
from tdpo.core.training.metrics import Means
from tdpo.core.training.resuming import load_process, save_process
from tdpo.core.training.running import RunningMeans

# Six steps an epoch, of eight pairs.
PAIRS, STEPS = 8, 12
OPTIONS = {
    "plugin": ["sampo", "bco_pair=0.5"], "epochs": 2, "learning_rate": 0.02, "schedule": "constant",
    "optimizer": "sgd", "logging_steps": 1, "quiet": True, "prompt_sharing": "off",
    "set": {"training.max_grad_norm": 0},
}  # fmt: skip
STEP_OF_8 = {"batch_size": PAIRS}
COMPARED = (
    "loss",
    "loss/sampo",
    "loss/bco_pair",
    "bco/shift",
    "rewards/margins",
    "logps/chosen",
    "grad_norm",
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def events(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if "loss" in event]


def trajectory(folder, names=COMPARED):
    found = events(folder)
    assert [event["step"] for event in found] == list(range(1, STEPS + 1))
    return {name: np.array([event[name] for event in found]) for name in names}


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("running")

    def run(name, **options):
        tdpo.fit(cache=cache, output=str(folder / name), **{**OPTIONS, **options})
        return folder / name

    return run


@pytest.fixture(scope="module")
def plain(run):
    """The run of undivided steps, with a checkpoint in the middle of its second epoch."""
    return run("plain", **STEP_OF_8, save_steps=9)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Options of a run that learns nothing, far from the reference."""
    folder = tmp_path_factory.mktemp("other") / "model"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        **STEP_OF_8, "learning_rate": 1e-12, "model": str(folder), "other_start": True,
        "set": OPTIONS["set"],
    }  # fmt: skip


def own_shift(folder):
    """The last shift that was logged."""
    return events(folder)[-1]["bco/shift"]


def assert_same(ours, theirs):
    a, b = trajectory(ours), trajectory(theirs)
    for name in COMPARED:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in load_file(ours / "model.safetensors").items():
        torch.testing.assert_close(value, load_file(theirs / "model.safetensors")[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2, "gradient_accumulation": 4},
        {**STEP_OF_8, "batch_tokens": 64},
        {**STEP_OF_8, "prompt_sharing": "on", "packing": "on"},
    ],
    ids=["accumulated", "by tokens", "packed"],
)
def test_how_a_step_is_cut_up_changes_nothing(plain, run, options):
    assert_same(run("-".join(map(str, options)), **options), plain)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(plain, run):
    assert_same(run("two", batch_size=4, num_processes=2, batch_tokens=64), plain)


def test_evaluations_change_nothing(plain, run, cache):
    assert_same(run("beside", **STEP_OF_8, eval_cache=str(cache), eval_steps=4), plain)


def test_each_epoch_draws_anew_and_every_evaluation_the_same(run, still, cache):
    """Nothing is learnt, so that an epoch's mean says only what was drawn in it."""
    drawn = run("drawn", **still, eval_cache=str(cache), eval_steps=4)
    margins = trajectory(drawn)["rewards/margins"].reshape(2, 6).mean(1)
    assert abs(margins[0] - margins[1]) > 1e-3
    lines = [json.loads(line) for line in (drawn / "metrics.jsonl").read_text().splitlines()]
    evaluated = [event["eval_rewards/margins"] for event in lines if "eval_loss" in event]
    assert len(evaluated) == 4
    assert evaluated == pytest.approx([evaluated[0]] * 4, abs=1e-6)
    # An evaluation draws as the first epoch does; the cache is the one that is trained on.
    assert evaluated[0] == pytest.approx(margins[0], abs=1e-4)


def test_the_expected_form_and_another_seed_are_seen(run, still):
    expected = trajectory(run("expected", **{**still, "set": {**still["set"], "sampo.expected": True}}))
    margins = expected["rewards/margins"].reshape(2, 6).mean(1)
    assert margins[0] == pytest.approx(margins[1], abs=1e-4)
    other = [
        trajectory(run(f"seed-{seed}", **still, seed=seed))["rewards/margins"][:6].mean() for seed in (1, 2)
    ]
    assert abs(other[0] - other[1]) > 1e-3


@pytest.mark.parametrize(
    "cut", [STEP_OF_8, {"batch_size": 2, "gradient_accumulation": 4}], ids=["whole", "cut"]
)
def test_going_on_in_the_middle_of_an_epoch_changes_nothing(plain, run, cut):
    before = run(f"stopped-{len(cut)}", **cut, save_steps=9)
    for path in (*before.glob("*.safetensors"), *before.glob("checkpoint-1[0-9]")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert last_checkpoint(before).name == "checkpoint-9"
    assert_same(run(before.name, **cut, save_steps=9, resume=True), plain)


def test_an_evaluation_of_the_finished_run_is_the_fit_s_own(run, cache):
    """Its draws are those of every evaluation, its running means those that the run came to."""
    folder = run("evaluated", **STEP_OF_8, eval_cache=str(cache), eval_steps=6, seed=3)
    own = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = [event for event in own if "eval_loss" in event][-1]
    assert running_means(folder)["bco_pair/reward"] == pytest.approx(own_shift(folder), abs=1e-5)
    table = tdpo.evaluate(folder, bootstrap=0, quiet=True, out=str(folder / "found")).evaluated[0].table
    assert table.figures["loss"].mean() == pytest.approx(own["eval_loss"], abs=1e-5)
    assert table.figures["rewards/margins"].mean() == pytest.approx(own["eval_rewards/margins"], abs=1e-5)


def test_running_means_are_those_of_all_processes_however_many_go_on(tmp_path):
    objective = tdpo.objective("bco_pair")
    before, after = RunningMeans(objective), RunningMeans(objective)
    before.restore({"reward": [1.25, 10.0], "another": [1.0, 1.0]})
    save_process(str(tmp_path), 0, 2, Means(), before)
    load_process(str(tmp_path), 3, 4, Means(), after)
    assert after.state() == {"reward": [1.25, 10.0]}
    zeros = torch.zeros(1, 2)
    side = tdpo.Completions(mask=zeros == 0, logp=zeros, ref_logp=zeros)
    assert after.given_to(side, side, training=False)[0].running == {"reward": 0.125}
    assert RunningMeans(objective).given_to(side, side, training=False)[1].running == {"reward": 0}
    assert RunningMeans(tdpo.objective("dpo")).given_to(side, side, training=True) == (side, side)


def test_tokens_weighed_at_random_ask_for_no_scores(run):
    folder = run(
        "random", **STEP_OF_8, plugin="tis_dpo", weighting=["tis"], set={"transform": "random"}, max_steps=2
    )
    assert len(events(folder)) == 2


def test_the_shift_is_the_mean_of_all_rewards_so_far_those_of_its_step_included(run):
    """Against the rewards that the run logs, step by step; the last step of an epoch has fewer pairs."""
    folder = run("shift", plugin="bco_pair", batch_size=5, gradient_accumulation=2, set={"beta": 0.7})
    found = events(folder)
    pairs = np.array([10, 10, 10, 10, 8] * 2)
    rewards = np.array([(event["rewards/chosen"] + event["rewards/rejected"]) / 2 for event in found])
    want = np.cumsum(pairs * rewards) / np.cumsum(pairs)
    np.testing.assert_allclose([event["bco/shift"] for event in found], want, rtol=1e-4, atol=1e-6)
    # It is far from that of the step alone, so that the comparison can fail.
    assert np.abs(want - rewards).max() > 0.05
