"""Runs that end early: by a signal, by numbers that are not finite, by lack of memory; and how they go on."""

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trouble_plugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import make_model, make_tokenizer, run_tdpo
from trouble_plugin import Hooks

import tdpo
from tdpo.core.errors import ConfigError, StoppedBySignal, TrainingError
from tdpo.core.registry import plugin_manager
from tdpo.core.runs.checkpoints import is_whole, last_checkpoint
from tdpo.core.training import stopping
from tdpo.core.training.data import EpochSampler, decode_pair_ids, encode_pair_ids


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """The test plugin, registered as an installed one would be; one thread, so that runs repeat exactly."""
    plugin_manager().register(Hooks, name="trouble 1.0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    plugin_manager().unregister(Hooks)


@pytest.fixture
def fit(cache, monkeypatch):
    """A fit of 48 pairs in steps of 8, twice, that meets with trouble where it is told to."""

    def run(output, trouble="none:0", plugin="trouble", **options):
        monkeypatch.setenv("TROUBLE", trouble)
        trouble_plugin.CALLS.clear()
        values = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "logging_steps": 1, **options}
        return tdpo.fit(plugin, cache, output=str(output), quiet=True, **values)

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The run that was not interrupted; its lines are the means of five steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tdpo.fit(
        "trouble", cache, output=str(folder), quiet=True, learning_rate=1e-3, epochs=2, batch_size=8,
        logging_steps=5, save_steps=4,
    )  # fmt: skip
    return folder


def figures(folder):
    """What was logged of training, but for times and memory."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    varying = ("tokens_per_second", "peak_memory_gb")
    return [{k: v for k, v in event.items() if k not in varying} for event in events if "loss" in event]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_run(a, b):
    assert figures(a) == figures(b)
    a, b = weights(a), weights(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0)


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("name", "code", "at"), [("SIGINT", 130, 4), ("SIGTERM", 143, 6), ("SIGINT", 130, 9)]
)
def test_a_signal_ends_the_step_saves_and_resumes_to_the_same_run(tmp_path, fit, whole, name, code, at):
    """In the middle of an epoch and at its end, between two logged lines."""
    folder = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedBySignal) as stop:
        fit(folder, f"{name}:{at}", logging_steps=5, save_steps=4)
    assert stop.value.exit_code == code
    assert f"after step {at} of 12; {folder}/checkpoint-{at} is saved" in str(stop.value)
    assert "--resume" in str(stop.value)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert last_checkpoint(folder).name == f"checkpoint-{at}"
    assert not (folder / "model.safetensors").exists()
    fit(folder, logging_steps=5, save_steps=4, resume=True)
    assert_same_run(whole, folder)


def test_stopped_within_an_epoch_nothing_is_done_that_is_due_at_its_end(tmp_path, fit, cache):
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "run", "SIGINT:2", eval_cache=[str(cache)])
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "eval_loss" in event] == [0]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    fit(tmp_path / "run", eval_cache=[str(cache)], resume=True)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "eval_loss" in event] == [0, 6, 12]
    assert [event["step"] for event in events if "loss" in event] == list(range(1, 13))


def test_a_second_ctrl_c_ends_at_once(tmp_path, fit, monkeypatch):
    monkeypatch.setattr(stopping, "_SAME", -1.0)
    with pytest.raises(KeyboardInterrupt) as stop:
        fit(tmp_path / "run", "SIGINT+SIGINT:2")
    assert not isinstance(stop.value, StoppedBySignal)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_the_same_ctrl_c_passed_on_by_a_launcher_is_no_second_one(tmp_path, fit):
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "run", "SIGINT+SIGINT:2")
    assert (tmp_path / "run" / "checkpoint-2").exists()


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, fit):
    assert fit(tmp_path / "run", "SIGINT:3", max_steps=3).steps == 3


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path, fit):
    before = signal.getsignal(signal.SIGINT)
    steps = []
    thread = threading.Thread(target=lambda: steps.append(fit(tmp_path / "run", max_steps=2).steps))
    thread.start()
    thread.join()
    assert steps == [2]
    assert signal.getsignal(signal.SIGINT) is before


def step_pairs(cache, step, size=8):
    """The pairs of an optimiser step of the first epoch."""
    reader = tdpo.open_cache(cache)
    order = list(EpochSampler(reader, 0))[(step - 1) * size : step * size]
    return [one.pair for one in reader.read(order)]


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_pairs(tmp_path, fit, cache, kind):
    folder = tmp_path / "run"
    with pytest.raises(TrainingError) as stop:
        fit(folder, f"{kind}:6", save_steps=2)
    pairs = step_pairs(cache, 6)
    longest = max(len(pair.chosen_ids) for pair in pairs)
    bad = {pair.pair_id for pair in pairs if len(pair.chosen_ids) == longest}
    said = str(stop.value)
    assert said.startswith(f"step 6: the loss is NaN or infinite on {len(bad)} of 8 pairs: ")
    assert {word.strip(",;") for word in said.split()} >= bad
    assert f"{folder}/checkpoint-4 is the last good checkpoint" in said
    assert is_whole(folder / "checkpoint-4")
    assert not (folder / "model.safetensors").exists()
    assert [event["step"] for event in figures(folder)] == [1, 2, 3, 4, 5]


def test_of_micro_batches_the_one_with_the_bad_pair_is_named(tmp_path, fit, cache):
    with pytest.raises(TrainingError, match="step 2: the loss is NaN or infinite on 1 of 8 pairs") as stop:
        fit(tmp_path / "run", "nan:10", batch_size=1, gradient_accumulation=8)
    assert step_pairs(cache, 10, size=1)[0].pair_id in str(stop.value)
    assert "no checkpoint was written yet" in str(stop.value)


def test_gradients_that_are_not_finite_end_the_run_though_the_losses_are(tmp_path, fit, cache):
    with pytest.raises(TrainingError, match="step 3: the gradients are NaN or infinite") as stop:
        fit(tmp_path / "run", "gradient:3", save_steps=1)
    named = [pair.pair_id for pair in step_pairs(cache, 3) if pair.pair_id in str(stop.value)]
    assert len(named) == 5
    assert "and 3 more" in str(stop.value)
    # Taken before the weights are touched.
    assert is_whole(tmp_path / "run" / "checkpoint-2")
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, fit):
    with pytest.raises(TrainingError, match="step 1: weights of the policy became NaN or infinite"):
        fit(tmp_path / "run", learning_rate=3e37, training={"weight_decay": 9}, save_steps=1)
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


def test_too_little_memory_is_told_with_sizes_and_advice(tmp_path, fit):
    with pytest.raises(
        TrainingError, match=r"step 2: memory does not suffice for a micro-batch of 8 pairs \("
    ) as e:
        fit(tmp_path / "run", "memory:2")
    assert "tdpo plan" in str(e.value)


def test_other_errors_of_the_training_step_are_not_taken_for_a_lack_of_memory(tmp_path, fit):
    with pytest.raises(KeyError):
        fit(tmp_path / "run", "no such signal:2")


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
def test_pair_ids_travel_as_bytes(ids):
    names = [one.hex() for one in ids]
    encoded = encode_pair_ids(names)
    assert encoded.shape == (len(ids), 16)
    assert decode_pair_ids(encoded) == names


# Each of the checkpoint's files, from what a run really wrote.
REQUIRED = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    "process_0.json",
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_checkpoint_that_was_cut_short_is_not_taken(tmp_path_factory, whole, data):
    source = whole / "checkpoint-8"
    assert is_whole(source)
    folder = tmp_path_factory.mktemp("cut") / "checkpoint-8"
    shutil.copytree(source, folder)
    name = data.draw(st.sampled_from(sorted(path.name for path in source.iterdir())))
    size = (folder / name).stat().st_size
    kept = data.draw(st.integers(-1, size - 2))
    if kept < 0 and name in REQUIRED:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((source / name).read_bytes()[: max(kept, 0)])
    assert not is_whole(folder), (name, kept, size)
    shutil.rmtree(folder)


def test_a_run_goes_on_from_its_last_whole_checkpoint(tmp_path, fit, whole, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in ("model.safetensors", "checkpoint-12/trainer_state.json"):
        (folder / path).unlink()
    assert last_checkpoint(folder).name == "checkpoint-8"
    fit(folder, logging_steps=5, save_steps=4, resume=True)
    assert_same_run(whole, folder)
    assert last_checkpoint(folder).name == "checkpoint-12"


def test_what_does_not_change_the_training_may_change_at_a_resume(tmp_path, fit, cache):
    """Other micro-batches of as many pairs a step, recomputed activations, other intervals, a moved cache."""
    fit(tmp_path / "whole", max_steps=6)
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "run", "SIGINT:3", max_steps=6)
    moved = shutil.copytree(cache, tmp_path / "moved")
    options = {
        "batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": True, "prompt_sharing": "off",
        "logging_steps": 2, "save_steps": 5, "max_steps": 6, "learning_rate": 1e-3, "epochs": 2,
    }  # fmt: skip
    tdpo.fit(
        "trouble", moved, output=str(tmp_path / "run"), quiet=True, resume=True, set={"beta": 0.1}, **options
    )
    assert [event["step"] for event in figures(tmp_path / "run")] == [1, 2, 3, 4, 6]
    assert [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))] == [
        "checkpoint-5",
        "checkpoint-6",
    ]
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "run")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, cache):
    """A finished run to be gone on with."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    tdpo.fit("trouble", cache, output=str(folder), quiet=True, max_steps=1, set={"beta": 0.1})
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"set": {"beta": 0.2}}, r"another objective \(beta: the run has 0.1, you give 0.2\)"),
        ({"plugin": "dpo"}, r"another objective \(class: the run has .*Trouble"),
        ({"cache": "short"}, r"another cache \(base.data"),
        ({"model": "other", "other_start": True}, r"other_start=False"),
        ({"model": "other"}, r"another model \(weights_sha256: "),
        ({"batch_size": 4}, "8 pairs an optimiser step, now it is 4"),
        ({"training": {"weight_decay": 0.1}}, "training.weight_decay=None, now it is 0.1"),
        ({"training": {"save_only_model": True}}, "save_only_model"),
    ],
)  # fmt: skip
def test_another_run_is_not_gone_on_with(tmp_path, stopped, cache, reference, change, said):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    if change.get("cache"):
        rows = [json.dumps({"prompt": "the", "chosen": " film", "rejected": " plot"})]
        (tmp_path / "short.jsonl").write_text("\n".join(rows))
        tdpo.build_cache(reference, tmp_path / "short.jsonl", tmp_path / "short", quiet=True)
    if change.get("model"):
        make_model(len(make_tokenizer()), seed=9).save_pretrained(tmp_path / "other")
        make_tokenizer().save_pretrained(tmp_path / "other")
    names = {name: str(tmp_path / change[name]) for name in ("cache", "model") if name in change}
    options = {"plugin": "trouble", "cache": cache, "set": {"beta": 0.1}, "max_steps": 1, **change, **names}
    before = content(folder)
    with pytest.raises(ConfigError, match=said):
        tdpo.fit(output=str(folder), quiet=True, resume=True, **options)
    assert content(folder) == before


def test_dropout_is_kept_where_asked_for_and_resumes_exactly(tmp_path, fit, reference):
    """The policy's own dropout changes what it says, from random states that a checkpoint holds."""
    model = tmp_path / "model"
    shutil.copytree(reference, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    options = {"model": str(model), "dropout": True, "max_steps": 6, "logging_steps": 1}
    fit(tmp_path / "whole", **options)
    fit(tmp_path / "off", **{**options, "dropout": False, "max_steps": 1})
    assert figures(tmp_path / "off")[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert abs(figures(tmp_path / "whole")[0]["loss"] - np.log(2)) > 1e-3
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "run", "SIGINT:3", **options)
    fit(tmp_path / "run", resume=True, **options)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def naive_margins(policy, reference, pairs):
    """beta 0.1 times the difference of the sides' log-ratios, each side on its own from full logits."""
    margins = []
    for pair in pairs:
        ratio = []
        for ids in (pair.chosen_ids, pair.rejected_ids):
            tokens = torch.tensor([[*pair.prompt_ids.tolist(), *ids.tolist()]])
            rows = torch.arange(len(pair.prompt_ids) - 1, tokens.shape[1] - 1)
            with torch.no_grad():
                q, p = (m(tokens).logits[0].double().log_softmax(-1) for m in (policy, reference))
            ratio.append((q - p)[rows, tokens[0, rows + 1]].sum())
        margins.append(0.1 * (ratio[0] - ratio[1]))
    return torch.stack(margins)


def test_a_loss_that_compares_pairs_sees_the_whole_step(tmp_path, fit, cache, reference):
    from transformers import AutoModelForCausalLM

    ref = AutoModelForCausalLM.from_pretrained(reference)
    policy = AutoModelForCausalLM.from_pretrained(reference)
    with torch.no_grad():
        for at, weight in enumerate(policy.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(at))
    policy.save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    margins = naive_margins(policy, ref, step_pairs(cache, 1))
    expected = -torch.nn.functional.logsigmoid(margins - margins.mean()).mean()
    assert abs(expected + torch.nn.functional.logsigmoid(margins).mean()) > 1e-3
    fit(
        tmp_path / "run", plugin="centred", model=str(tmp_path / "policy"), other_start=True, max_steps=1,
        prompt_sharing="on",
    )  # fmt: skip
    assert figures(tmp_path / "run")[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_accumulation": 2}, "--gradient-accumulation 2: .* --batch-size"),
        ({"batch_tokens": 64}, "--batch-tokens 64: "),
    ],
)
def test_a_loss_that_compares_pairs_refuses_to_be_cut_up(tmp_path, fit, options, said):
    with pytest.raises(ConfigError, match=said):
        fit(tmp_path / "run", plugin="centred", **options)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that finds the test plugin as an installed one."""
    site = tmp_path_factory.mktemp("site")
    info = site / "trouble-1.0.dist-info"
    info.mkdir()
    shutil.copy(trouble_plugin.__file__, site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tdpo]\ntrouble = trouble_plugin:Hooks\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}


def run_fit(cache, folder, env, trouble, *options):
    return run_tdpo(
        "fit", "--plugin", "trouble", "--cache", cache, "--output", folder, "--learning-rate", "1e-3",
        "--epochs", "2", "--logging-steps", "5", "--save-steps", "4", *options,
        env={**env, "TROUBLE": trouble}, check=False,
    )  # fmt: skip


def said(outcome):
    return [line for line in outcome.stderr.splitlines() if line.startswith("tdpo: ")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")])
def test_the_command_line_says_how_to_go_on(tmp_path, cache, installed, whole, name, code, word):
    stopped = run_fit(cache, tmp_path / "run", installed, f"{name}:3", "--batch-size", "8")
    assert stopped.returncode == code
    notice, last = said(stopped)
    assert "Ctrl-C again stops at once" in notice
    assert re.search(rf"stopped by {word} after step 3 of 12; .*checkpoint-3 is saved.*--resume", last)
    assert "Traceback" not in stopped.stderr
    resumed = run_fit(cache, tmp_path / "run", installed, "none:0", "--batch-size", "8", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_of_several_processes_all_stop_for_the_signal_of_one(tmp_path, cache, installed, whole):
    options = ("--batch-size", "4", "--num-processes", "2")
    stopped = run_fit(cache, tmp_path / "run", installed, "SIGINT:3:1", *options)
    assert stopped.returncode == 130, stopped.stderr
    assert "after step 3 of 12" in said(stopped)[-1]
    assert is_whole(tmp_path / "run" / "checkpoint-3")
    resumed = run_fit(cache, tmp_path / "run", installed, "none:0", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for x, y in zip(figures(whole), figures(tmp_path / "run"), strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-5)
        assert x["logps/chosen"] == pytest.approx(y["logps/chosen"], abs=1e-4)
    a, b = weights(whole), weights(tmp_path / "run")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_of_several_processes_all_end_for_the_bad_pair_of_one(tmp_path, cache, installed):
    stopped = run_fit(
        cache, tmp_path / "run", installed, "nan:5:1", "--batch-size", "4", "--num-processes", "2"
    )
    assert stopped.returncode == 2
    assert len(said(stopped)) == 1
    count, named = re.search(
        r"step 5: the loss is NaN or infinite on (\d) of 8 pairs: (.*?);", stopped.stderr
    ).groups()
    assert set(named.split(", ")) < {pair.pair_id for pair in step_pairs(cache, 5)}
    assert len(named.split(", ")) == int(count)
    assert is_whole(tmp_path / "run" / "checkpoint-4")
    assert not (tmp_path / "run" / "model.safetensors").exists()
