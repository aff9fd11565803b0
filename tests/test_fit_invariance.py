"""What must not change a run does not: whole trajectories of the command line, compared step by step.

A difference that points cannot show, because each is within the tolerance, shows in the mean of all.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from bad_input.provoke import run_command
from support import run_tdpo, write_pairs

import tdpo

pytestmark = pytest.mark.slow

# 52 pairs in steps of 8: the last of an epoch has 4. Five epochs are 35 steps.
STEPS = 35
COMMON = "--epochs 5 --learning-rate 5e-4 --warmup-steps 5 --schedule cosine --logging-steps 1"
STEP_OF_8, STEPS_OF_4 = "--batch-size 8", "--batch-size 4 --gradient-accumulation 2"
# Not the accuracies, which jump where a margin is zero.
COMPARED = ("loss", "rewards/margins", "kl/chosen", "kl/rejected", "logps/chosen", "entropy", "grad_norm")
POINT, MEAN = 1e-4, 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many threads as a process of several has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference):
    """Where the runs are, with a cache whose pairs have one token to more than a dozen a side."""
    folder = tmp_path_factory.mktemp("invariance")
    tdpo.build_cache(
        reference,
        write_pairs(folder / "pairs.jsonl", 52, seed=5),
        folder / "cache",
        shard_rows=20,
        quiet=True,
    )
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Runs ``tdpo fit`` and gives its trajectory: name of a figure -> [steps]."""

    def run(plugin, name, options, *, alone=False):
        words = f"fit --plugin {plugin} --cache {folder}/cache --output {folder}/{name} {COMMON} {options}"
        if alone:
            run_tdpo(*words.split())
        else:
            outcome = run_command(f"tdpo {words}")
            assert outcome.code == 0, outcome.stderr
        return trajectory(folder / name)

    return run


def trajectory(folder):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = [event for event in events if "loss" in event]
    assert [event["step"] for event in events] == list(range(1, STEPS + 1))
    return {name: np.array([event[name] for event in events]) for name in COMPARED}


@pytest.fixture(scope="module", params=["tdpo2", "dpo"])
def base(request, run):
    """The plugin, and its run in steps of one micro-batch."""
    found = run(
        request.param,
        f"{request.param}-base",
        f"{STEP_OF_8} --save-steps 10 --set training.save_total_limit=9",
    )
    assert found["loss"][0] == pytest.approx(np.log(2), abs=1e-3)
    # It learns, so that a wrong gradient would show.
    assert found["loss"][-7:].mean() < 0.9 * found["loss"][0]
    assert found["rewards/margins"][-7:].mean() > 0.1
    assert found["kl/chosen"][-7:].mean() > 0.1
    return request.param, found


def assert_same(a, b):
    for name in COMPARED:
        apart = b[name] - a[name]
        # Sums over a completion's tokens are larger than one; what is smaller is compared as it is.
        size = max(1.0, float(np.abs(a[name]).mean()))
        assert np.abs(apart).max() <= POINT * size, (name, apart)
        assert abs(apart.mean()) <= MEAN * size, (name, apart.mean())


VARIANTS = {
    "two micro-batches of four": STEPS_OF_4,
    "four micro-batches of two": "--batch-size 2 --gradient-accumulation 4",
    "micro-batches by tokens": f"{STEP_OF_8} --batch-tokens 64",
    "recomputed activations": f"{STEP_OF_8} --gradient-checkpointing",
    "prompts scored twice": f"{STEP_OF_8} --prompt-sharing off",
    "several pairs in a row": f"{STEP_OF_8} --packing on",
    "several pairs in a row, prompts twice": f"{STEP_OF_8} --packing on --prompt-sharing off",
    "all of it": f"{STEPS_OF_4} --batch-tokens 64 --packing on --gradient-checkpointing",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_how_a_step_is_computed_changes_nothing(base, run, name):
    plugin, expected = base
    assert_same(expected, run(plugin, f"{plugin}-{name}".replace(" ", "-"), VARIANTS[name]))


def test_the_number_of_processes_changes_nothing(base, run):
    plugin, expected = base
    assert_same(expected, run(plugin, f"{plugin}-two", "--num-processes 2 --batch-size 4", alone=True))


def test_going_on_in_the_middle_of_an_epoch_changes_nothing(base, run, folder):
    """From what a run leaves that is killed after step 10, the third of its second epoch."""
    plugin, expected = base
    killed = shutil.copytree(folder / f"{plugin}-base", folder / f"{plugin}-killed")
    for path in (*killed.glob("*.safetensors"), *killed.glob("checkpoint-[!1]*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path.name for path in killed.glob("checkpoint-*")] == ["checkpoint-10"]
    assert_same(
        expected,
        run(
            plugin,
            f"{plugin}-killed",
            f"{STEP_OF_8} --save-steps 10 --resume --set training.save_total_limit=9",
        ),
    )


def test_a_difference_of_seed_would_be_seen(base, run):
    """That the comparison can fail: another order of the pairs is another trajectory."""
    plugin, expected = base
    with pytest.raises(AssertionError):
        assert_same(expected, run(plugin, f"{plugin}-seed", f"{STEP_OF_8} --seed 1"))
