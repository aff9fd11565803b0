"""A policy sharded by FSDP2 trains as a whole one does, and a sharding that would not run is refused.

accelerate shards over GPUs only. Here torch's and accelerate's own wrapping is run over two CPU processes;
the last test is what a machine with two GPUs runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import run_tdpo

from tdpo.core.config.file import fit_config
from tdpo.core.errors import ConfigError
from tdpo.core.training.sharding import Sharding

HERE = Path(__file__).parent
SCENARIOS = [
    *(f"by_layer: {name}" for name in ("plain", "tied", "checkpointing", "frozen head")),
    *(f"as_accelerate_does: {name}" for name in ("plain", "tied", "checkpointing", "frozen head")),
    "as_accelerate_does: tied and checkpointing",
    "as_accelerate_does: lora",
]


@pytest.fixture(scope="module")
def found():
    """What two processes found, scenario by scenario."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            HERE / "fsdp_process.py",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_sharded_policy_has_the_gradients_and_the_steps_of_a_whole_one(found, scenario):
    apart = found[scenario]
    assert apart["sharded"]
    assert apart["gradients"] < 1e-5
    assert apart["weights"] < 1e-5
    assert apart["losses"] < 1e-5


@pytest.mark.slow
def test_log_probs_leave_a_sharded_model_in_float32(found):
    assert found["precision"]["dtype"] == "torch.float32"
    assert found["precision"]["error"] < 0.2


def asked(**options):
    return Sharding.asked(fit_config({"plugin": "dpo", **options}))


@pytest.fixture
def gpus(monkeypatch):
    """As on a machine with GPUs; nothing is put on them."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


def refusal(**options):
    with pytest.raises(ConfigError) as caught:
        asked(**options)
    return str(caught.value)


def test_nothing_is_sharded_unless_asked():
    assert asked() == Sharding()
    assert asked(num_processes=4, set={"training.fsdp": "false"}) == Sharding(4)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there are GPUs to shard over")
@pytest.mark.parametrize("value", [True, "true", "full_shard auto_wrap"])
def test_sharding_over_cpus_is_refused(value):
    said = refusal(num_processes=2, training={"fsdp": value})
    assert "there is no GPU to shard over" in said


def test_sharding_asked_of_the_launcher_is_seen(monkeypatch, gpus):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert asked(num_processes=2).fsdp
    assert "one process" in refusal()
    assert "no GPU" in refusal(num_processes=2, training={"use_cpu": True})
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert "set it to false" in refusal(num_processes=2)
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert "fsdp_version: 2" in refusal(num_processes=2)


def test_what_cannot_be_sharded_is_refused(gpus, tmp_path):
    def config(**values):
        return {"num_processes": 2, "training": {"fsdp": True, "fsdp_config": values}}

    assert asked(**config(transformer_layer_cls_to_wrap=["LlamaDecoderLayer"])).fsdp
    assert "fsdp_version: 2" in refusal(**config(version=1))
    assert "set it to false" in refusal(**config(fsdp_cpu_ram_efficient_loading=True))
    twice = config(activation_checkpointing=True) | {"gradient_checkpointing": True}
    assert "give one of them" in refusal(**twice)
    assert "use --gradient-checkpointing" in refusal(**config(activation_checkpointing=True), lora=4)
    assert "--merge" in refusal(num_processes=2, lora=4, merge=True, training={"fsdp": True})
    assert "does nothing without training.fsdp" in refusal(training={"fsdp_config": {"version": 2}})
    missing = refusal(num_processes=2, training={"fsdp": True, "fsdp_config": "nowhere.json"})
    assert "nowhere.json: No such file" in missing
    (tmp_path / "broken.json").write_text("{")
    assert "not JSON" in refusal(
        num_processes=2, training={"fsdp": True, "fsdp_config": str(tmp_path / "broken.json")}
    )


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("PARALLELISM_CONFIG_TP_SIZE", "2", "tensor parallelism"),
        ("PARALLELISM_CONFIG_CP_SIZE", "2", "context parallelism"),
    ],
)
def test_other_ways_to_split_a_model_are_refused(monkeypatch, variable, value, what):
    assert asked() == Sharding()
    monkeypatch.setenv(variable, value)
    assert what in refusal()


@pytest.mark.parametrize("field", ["dispatch_batches", "split_batches"])
def test_reading_for_other_processes_is_refused(field):
    assert field in refusal(training={"accelerator_config": {field: True}})
    asked(training={"accelerator_config": {field: False}})


def test_deepspeed_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("tdpo.core.training.sharding.find_spec", lambda name: None)
    assert "pip install deepspeed" in refusal(training={"deepspeed": {"zero_optimization": {"stage": 2}}})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "pip install deepspeed" in refusal()


def test_deepspeed_may_split_optimiser_and_gradients_but_not_the_head(monkeypatch, tmp_path):
    # Only whether it is there is looked at.
    monkeypatch.setattr("tdpo.core.training.sharding.find_spec", lambda name: object())
    for stage in (0, 1, 2):
        assert asked(training={"deepspeed": {"zero_optimization": {"stage": stage}}}).deepspeed
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert "ZeRO stage 3" in refusal(training={"deepspeed": str(file)})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert "FSDP2" in refusal()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs")
def test_two_gpus_train_a_sharded_policy_as_one_trains_a_whole_one(tmp_path, cache):
    common = [
        *("fit", "--plugin", "tdpo2", "--cache", cache, "--optimizer", "sgd", "--learning-rate", "0.1"),
        *("--logging-steps", "1", "--epochs", "2"),
    ]
    sharded = ["--num-processes", "2", "--batch-size", "4", "--set", "training.fsdp=true"]
    run_tdpo(*common, "--output", tmp_path / "sharded", *sharded)
    run_tdpo(*common, "--output", tmp_path / "whole", "--batch-size", "8", env={"CUDA_VISIBLE_DEVICES": "0"})
    runs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("sharded", "whole")
    ]
    for ours, theirs in zip(*runs, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins"):
            assert ours.get(name) == pytest.approx(theirs.get(name), rel=1e-4, abs=1e-5)
