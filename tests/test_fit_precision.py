"""Optimisers that take less memory, parameters in bfloat16, and what a device does not have."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from support import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.errors import ConfigError, ModelError
from tdpo.core.models import find_model
from tdpo.core.training.precision import check_bfloat16, lost_share
from tdpo.core.training.rehearsal import rehearse

COMMON = {"learning_rate": 1e-3, "schedule": "constant", "batch_size": 8, "max_steps": 3, "logging_steps": 1}


def fit(cache, output, **options):
    return tdpo.fit("dpo", cache, output=str(output), **{**COMMON, "quiet": True, **options})


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event["loss"] for event in map(json.loads, lines) if "loss" in event]


@pytest.fixture(scope="module")
def wide_cache(pairs, tmp_path_factory):
    """A cache of a model whose matrices are large enough (4,096 values) to be kept in 8 bits."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(320, hidden_size=64).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    tdpo.build_cache(folder / "model", pairs, folder / "cache", head=0, tail=0, limit=24, quiet=True)
    return folder / "cache"


@pytest.fixture(scope="module")
def plain_losses(wide_cache, tmp_path_factory):
    return losses(fit(wide_cache, tmp_path_factory.mktemp("plain") / "run").output)


def tensors(content):
    """All tensors of a nested dictionary."""
    for value in content.values():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_the_optimisers_of_bitsandbytes_train_as_adamw(wide_cache, plain_losses, tmp_path, name):
    pytest.importorskip("bitsandbytes")
    run = fit(wide_cache, tmp_path / "run", optimizer=name, save_steps=3).output
    assert losses(run) == pytest.approx(plain_losses, rel=0.05)
    assert losses(run)[-1] != pytest.approx(losses(run)[0], abs=1e-3)
    state = torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=False)["state"]
    kept = [tensor.dtype for tensor in tensors(state) if tensor.ndim == 2 and tensor.numel() >= 4096]
    assert kept
    # Two moments of the embedding stay in 32 bits.
    assert kept.count(torch.float32) == (2 if "8bit" in name else len(kept))


def test_an_8bit_optimiser_resumes_where_it_was_cut(wide_cache, tmp_path):
    pytest.importorskip("bitsandbytes")
    import shutil

    options = {"optimizer": "paged_adamw_8bit", "save_steps": 2, "max_steps": 4}
    whole = fit(wide_cache, tmp_path / "whole", **options, batch_size=6).output
    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoint-4")
    fit(wide_cache, cut, **options, batch_size=6, resume=True)
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-6)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(run).state_dict() for run in (cut, whole))
    for label, value in theirs.items():
        torch.testing.assert_close(ours[label], value, rtol=0, atol=1e-6, msg=label)


PACKAGES = {
    "adamw_torch_4bit": "torchao",
    "galore_adamw": "galore_torch",
    "lomo": "lomo_optim",
    "schedule_free_adamw": "schedulefree",
    "apollo_adamw": "apollo_torch",
    "grokadamw": "grokadamw",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_an_optimiser_that_is_not_installed_is_told_before_anything_is_written(wide_cache, tmp_path, name):
    if find_spec(PACKAGES[name]) is not None:
        pytest.skip("it is installed")
    with pytest.raises(ConfigError, match=f"--optimizer {name}: .*install") as caught:
        fit(wide_cache, tmp_path / "run", optimizer=name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("momentum", "'momentum' is no NAME=VALUE"),
        ("momentum=much", "--optimizer sgd: could not convert string to float: 'much'"),
    ],
)
def test_arguments_that_an_optimiser_does_not_take_are_told_too(wide_cache, tmp_path, given, says):
    with pytest.raises(ConfigError, match=says):
        fit(wide_cache, tmp_path / "run", optimizer="sgd", training={"optim_args": given})
    assert not (tmp_path / "run").exists()


def test_steps_that_bfloat16_parameters_lose_are_told(wide_cache, tmp_path, capfd):
    """At the default learning rate most of them: the parameters stay where they were."""
    run = fit(
        wide_cache, tmp_path / "run", dtype="bfloat16", learning_rate=1e-6, quiet=False, other_start=True
    )
    said = capfd.readouterr().err
    assert "parameters are too large for a step of 1e-06 to change them" in said
    start = AutoModelForCausalLM.from_pretrained(wide_cache.parent / "model", dtype=torch.bfloat16)
    end = AutoModelForCausalLM.from_pretrained(run.output, dtype=torch.bfloat16)
    same = torch.cat([(a == b).flatten() for a, b in zip(start.parameters(), end.parameters(), strict=True)])
    assert same.float().mean() > 0.95
    assert lost_share(start, 1e-6) == pytest.approx(float(same.float().mean()), abs=0.03)


def test_autocast_on_float32_parameters_loses_no_step(wide_cache, tmp_path, capfd):
    run = fit(wide_cache, tmp_path / "run", bf16=True, learning_rate=1e-6, quiet=False)
    assert "too large" not in capfd.readouterr().err
    start, end = (AutoModelForCausalLM.from_pretrained(x) for x in (wide_cache.parent / "model", run.output))
    same = torch.cat([(a == b).flatten() for a, b in zip(start.parameters(), end.parameters(), strict=True)])
    # Embeddings of tokens that do not occur have no gradient.
    assert same.float().mean() < 0.3


def test_few_steps_are_lost_where_the_rate_is_high_or_the_parameters_are_in_float32():
    model = make_model(320)
    assert lost_share(model, 1e-6) == 0
    assert lost_share(model.to(torch.bfloat16), 1.0) == 0
    assert lost_share(model, 1e-6) > 0.9
    assert lost_share(model.requires_grad_(False), 1e-6) == 0


def test_bfloat16_is_refused_on_a_gpu_that_has_none():
    check_bfloat16("--bf16", "NVIDIA H100", (9, 0))
    with pytest.raises(ConfigError, match=r"--bf16: Tesla T4 \(compute capability 7.5\) .* leave it out"):
        check_bfloat16("--bf16", "Tesla T4", (7, 5))


@pytest.mark.parametrize(
    ("options", "extra"),
    [({"lora": 4}, "peft"), ({"lora": 4, "quantization": "4bit"}, "quantization")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    wide_cache, tmp_path, monkeypatch, options, extra
):
    package = {"peft": "peft", "quantization": "bitsandbytes"}[extra]
    monkeypatch.setattr(
        "tdpo.core.adapters.find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ModelError, match=rf'not installed: pip install "tdpo\[{extra}\]"'):
        fit(wide_cache, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_merge_of_what_is_spread_over_processes_is_refused(wide_cache):
    pytest.importorskip("peft")
    config = FitConfig(plugin="dpo", lora=4, merge=True)
    source = find_model(str(wide_cache.parent / "model"), option="--model")
    arguments = _arguments(config)
    rehearse(config, source, arguments)
    with pytest.raises(ConfigError, match="--merge: a model that FSDP or DeepSpeed spreads"):
        rehearse(config, source, arguments, sharded=True)
    rehearse(replace(config, merge=False), source, arguments, sharded=True)


def _arguments(config):
    from tdpo.core.training.arguments import training_arguments

    return training_arguments(config, False)
