"""Several processes train the policy that one would, and say no more than one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import make_model, make_tokenizer, run_tdpo, write_pairs
from torch.utils.data import BatchSampler

import tdpo
from tdpo.core.config.file import fit_config
from tdpo.core.errors import ConfigError
from tdpo.core.training.data import NO_ROW, CachedPairs, EpochSampler
from tdpo.core.training.launch import as_launched, is_launched, launch

HERE = Path(__file__).parent
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [
    *("accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]
OPTIONS = {
    "plugin": "tdpo2", "epochs": 2, "learning_rate": 0.02, "schedule": "constant", "optimizer": "sgd",
    "logging_steps": 1, "set": {"training.max_grad_norm": 0},
}  # fmt: skip
# Figures of the machine and not of the training; the estimate of floating-point operations counts padding.
UNEQUAL = ("seconds", "second", "memory", "runtime", "flos")


@pytest.fixture(scope="module")
def odd_cache(tmp_path_factory, reference):
    """50 pairs: the last step of an epoch in steps of eight has two."""
    folder = tmp_path_factory.mktemp("odd")
    data = write_pairs(folder / "pairs.jsonl", 50, seed=3)
    tdpo.build_cache(reference, data, folder / "cache", shard_rows=20, quiet=True)
    return folder / "cache"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums are added up in the same order in every process; and the tests are no one's process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def single(tmp_path_factory, odd_cache):
    """The run of one process, eight pairs at a time."""
    folder = tmp_path_factory.mktemp("single") / "policy"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = tdpo.fit(
        cache=odd_cache, output=str(folder), batch_size=8, eval_cache=str(odd_cache), quiet=True, **OPTIONS
    )
    torch.set_num_threads(threads)
    return result


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours, theirs):
    """Every figure of every event, and the policy, which is whole."""
    a, b = events(ours), events(theirs)
    assert [event["step"] for event in a] == [event["step"] for event in b]
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {name for name in x if any(word in name for word in UNEQUAL)}:
            # At the start the policy is the reference: which of the two rewards is larger is rounding.
            if x["step"] > 1 or not name.endswith("accuracies"):
                assert x[name] == pytest.approx(y[name], abs=1e-4, rel=1e-4), (x["step"], name)
    assert_same_policy(ours, theirs)


def assert_same_policy(ours, theirs, file="model.safetensors"):
    a, b = (load_file(folder / file) for folder in (ours, theirs))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-5)


def test_two_processes_give_the_run_of_one(tmp_path, odd_cache, single):
    """From Python; the processes cut their batches into different numbers of micro-batches."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    result = tdpo.fit(
        cache=odd_cache, output=str(tmp_path / "two"), batch_size=4, eval_cache=str(odd_cache), quiet=True,
        num_processes=2, batch_tokens=90, **OPTIONS,
    )  # fmt: skip
    assert_same_run(tmp_path / "two", single.output)
    assert result.output == tmp_path / "two"
    assert result.steps == single.steps == 14
    assert result.metrics["eval_loss"] == pytest.approx(single.metrics["eval_loss"], abs=1e-5)
    assert "num_processes: 2" in (tmp_path / "two" / "tdpo.yaml").read_text()
    # The caller's own are as they were.
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert "RANK" not in os.environ


def flags(cache, output, **options):
    given = {**OPTIONS, "cache": cache, "output": output, **options}
    values = [f"{name}={value}" for name, value in given.pop("set").items()]
    words = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return ["fit", *words, *(word for value in values for word in ("--set", value))]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, [*ACCELERATE, "--multi_gpu"]], ids=["torchrun", "accelerate"])
def test_processes_of_a_launcher_give_the_run_of_one(tmp_path, odd_cache, single, launcher):
    if launcher is not TORCHRUN and torch.cuda.device_count() == 1:
        pytest.skip("accelerate launch --multi_gpu wants a GPU for each process where there is one")
    module = ["-m", "tdpo"] if launcher is TORCHRUN else ["--module", "tdpo"]
    command = [sys.executable, "-m", *launcher, *module, *flags(odd_cache, tmp_path / "two", batch_size=4)]
    result = subprocess.run(
        [*command, "--eval-cache", odd_cache], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "two", single.output)
    assert result.stdout.count("trained for 14 steps") == 1
    assert "num_processes: 2" in (tmp_path / "two" / "tdpo.yaml").read_text()


@pytest.mark.slow
def test_a_mistake_that_only_the_processes_find_is_said_once(tmp_path, odd_cache):
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    result = run_tdpo(*flags(odd_cache, tmp_path / "two", num_processes=2), "--model", other, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("tdpo: the policy does not start at the cached reference")
    assert len(result.stderr.splitlines()) == 1
    assert not list((tmp_path / "two").glob("checkpoint-*"))


def run_until(process, folder):
    """Wait for the first logged step."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists():
            return
        time.sleep(0.05)


@pytest.fixture
def long_run(tmp_path, odd_cache):
    """A run of two processes that does not end by itself, in the middle of its training."""
    folder = tmp_path / "long"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tdpo"),
            *flags(odd_cache, folder, num_processes=2, batch_size=4, epochs=10_000, save_steps=10_000),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C of a background job of a shell without job control is ignored from its start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    run_until(process, folder)
    yield process, folder
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for each in (*family, process):
        each.kill()
    process.wait()


def said(stderr):
    return [line for line in stderr.splitlines() if line.startswith("tdpo:")]


@pytest.mark.slow
def test_ctrl_c_saves_one_checkpoint_of_all_processes(long_run):
    process, folder = long_run
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    noticed, stopped = said(stderr)
    assert "stopping after this step" in noticed
    assert "stopped by Ctrl-C" in stopped
    assert "--resume" in stopped
    assert "death signal" not in stderr
    (checkpoint,) = folder.glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists()
    assert (checkpoint / "model.safetensors").exists()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_is_named(long_run):
    process, _ = long_run
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1" and "tdpo.core.training.worker" in child.cmdline()
    ]
    workers[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = said(stderr)
    assert "rank 1" in line
    assert "signal 9" in line
    assert "--resume" in line
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory, odd_cache):
    """What each of two processes found, and the folder with what they saved."""
    folder = tmp_path_factory.mktemp("found")
    subprocess.run(
        [sys.executable, "-m", *TORCHRUN, HERE / "fit_process.py", odd_cache, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


@pytest.mark.slow
@pytest.mark.parametrize("what", ["trained", "evaluated"])
def test_each_process_reads_its_own_rows_and_no_others(found, what):
    processes, _ = found
    rows = [process[what] for process in processes]
    assert sorted(rows[0] + rows[1]) == list(range(50))
    assert min(map(len, rows)) >= 24


@pytest.mark.slow
def test_a_sharding_that_does_not_run_is_refused_before_the_first_step(found):
    for process in found[0]:
        assert "FSDP is asked for, and the policy is not sharded" in process["said"]
        assert process["steps"] == 0


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_whole_policies_and_saves_one(found):
    processes, folder = found
    for process in processes:
        assert process["parameters"]
        for ours, theirs in zip(process["sharded"], process["plain"], strict=True):
            for name in ours.keys() - {name for name in ours if any(word in name for word in UNEQUAL)}:
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-5), name
    assert_same_policy(folder / "sharded", folder / "plain")
    assert_same_policy(folder / "sharded-lora", folder / "plain-lora", "adapter_model.safetensors")


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), processes=st.integers(1, 5), epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch_whatever_the_batches(odd_cache, size, processes, epoch):
    reader = tdpo.open_cache(odd_cache)
    sampler = EpochSampler(reader, 7, size * processes)
    sampler.set_epoch(epoch)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, size, drop_last=False), processes, process))
        for process in range(processes)
    ]
    assert len(list(sampler)) == len(sampler)
    assert len({len(batches) for batches in shards}) == 1
    rows = [row for batches in shards for batch in batches for row in batch if row != NO_ROW]
    assert sorted(rows) == list(range(50))
    # A step of all processes is what one process takes at a time.
    alone = EpochSampler(reader, 7)
    alone.set_epoch(epoch)
    steps = list(BatchSampler(alone, size * processes, drop_last=False))
    for step, want in enumerate(steps):
        assert [row for batches in shards for row in batches[step] if row != NO_ROW] == want


def test_what_fills_a_batch_up_is_not_read(odd_cache):
    data = CachedPairs(tdpo.open_cache(odd_cache))
    assert [record.pair.row for record in data.__getitems__([4, NO_ROW, 2])] == [4, 2]
    assert data.__getitems__([NO_ROW]) == []


def processes_of(**options):
    return as_launched(fit_config({"plugin": "dpo", **options})).num_processes


def test_a_launcher_says_how_many_processes_there_are(monkeypatch):
    assert processes_of() == 1
    assert processes_of(num_processes=3) == 3
    assert not is_launched(fit_config({"plugin": "dpo", "num_processes": 3}))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes_of() == processes_of(num_processes=2) == 2
    assert is_launched(fit_config({"plugin": "dpo", "num_processes": 2}))
    with pytest.raises(ConfigError, match="a launcher has started this as 2 processes"):
        processes_of(num_processes=3)


def test_a_launcher_says_in_what_precision(monkeypatch):
    assert not as_launched(fit_config({"plugin": "dpo"})).bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert as_launched(fit_config({"plugin": "dpo"})).bf16


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="--num-processes 2: this machine has 1 GPU; each process takes one"
    ):
        launch(fit_config({"plugin": "dpo", "num_processes": 2}))


@pytest.mark.slow
def test_accelerate_that_starts_one_process_of_several_is_noticed(tmp_path, odd_cache):
    command = [sys.executable, "-m", *ACCELERATE, "--cpu", "--module", "tdpo"]
    result = subprocess.run(
        [*command, *flags(odd_cache, tmp_path / "two")], capture_output=True, text=True, check=False
    )
    (line,) = said(result.stderr)
    assert "accelerate launch was asked for several processes, and this one is told of no other" in line
    assert not (tmp_path / "two").exists()
