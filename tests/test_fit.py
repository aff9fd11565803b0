"""Fitting a policy: equal to the computation with both models, and to itself however it is cut up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer, run_tdpo, write_pairs

import tdpo


def metrics(folder):
    """The logged training events of a run."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if "loss" in event]


def weights(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_weights(a, b, tolerance):
    a, b = weights(a), weights(b)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def exact_cache(tmp_path_factory, reference, pairs):
    """A cache whose head is the whole vocabulary: its KL is exact."""
    folder = tmp_path_factory.mktemp("exact") / "cache"
    tdpo.build_cache(reference, pairs, folder, head=10_000, quiet=True)
    return folder


def naive_pair_loss(name, policy, reference, record):
    """Loss of one pair from full logits of two models in memory, separate sequences, the paper's formula."""
    ratio, kl = {}, {}
    for side in ("chosen", "rejected"):
        prompt, ids = record.pair.prompt_ids, getattr(record.pair, f"{side}_ids")
        tokens = torch.tensor([[*prompt, *ids]])
        with torch.no_grad():
            p = reference(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        q = policy(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        rows = torch.arange(len(ids))
        labels = torch.from_numpy(ids.astype(np.int64))
        ratio[side] = (q - p)[rows, labels].sum()
        kl[side] = (p.exp() * (p - q)).sum()
    u = 0.1 * (ratio["chosen"] - ratio["rejected"])
    if name == "tdpo1":
        u = u - 0.1 * (kl["rejected"] - kl["chosen"])
    if name == "tdpo2":
        u = u - 0.5 * 0.1 * (kl["rejected"] - kl["chosen"].detach())
    return -torch.nn.functional.logsigmoid(u)


@pytest.mark.parametrize("name", ["dpo", "tdpo1", "tdpo2"])
def test_loss_and_gradients_equal_those_with_both_models_in_memory(name, exact_cache, reference):
    """A batch through layout, scoring, divergence and objective against two full forward passes a side."""
    from transformers import AutoModelForCausalLM

    from tdpo.core.scoring.completions import completions
    from tdpo.core.scoring.forward import enable_scoring
    from tdpo.core.training.data import collate

    reader = tdpo.open_cache(exact_cache)
    records = reader.read(range(6))
    ref = AutoModelForCausalLM.from_pretrained(reference)
    ours, naive = (AutoModelForCausalLM.from_pretrained(reference) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for a, b in zip(ours.parameters(), naive.parameters(), strict=True):
            a += 0.02 * torch.randn(a.shape, generator=generator)
            b.copy_(a)
    torch.stack([naive_pair_loss(name, naive, ref, record) for record in records]).mean().backward()

    enable_scoring(ours)
    batch = collate(records)
    scores = ours(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        score_positions=batch["score_positions"],
        score_ids=batch["score_ids"],
    )
    sides = completions(
        scores, batch, head=reader.head, vocab_size=reader.vocab_size, estimator="fitted", kl_gradient=True
    )
    tdpo.objective(name)(*sides).loss.mean().backward()
    for (label, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        # float16 of the cached distribution is what is left: 2^-11 of a log-prob.
        torch.testing.assert_close(
            a.grad,
            b.grad,
            rtol=2e-3,
            atol=2e-3 * float(b.grad.abs().max()),
            msg=lambda m, n=label: f"{n}: {m}",
        )


def fit(cache, output, *extra, plugin="tdpo2", **options):
    return run_tdpo(
        "fit", "--plugin", plugin, "--cache", cache, "--output", output, "--learning-rate", "1e-3",
        "--logging-steps", "1", *extra, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """A short finished run of the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "policy"
    printed = fit(
        cache, folder, "--eval-cache", cache, "--epochs", "2", "--batch-size", "8", "--save-steps", "4"
    )
    return folder, printed


def test_a_run_leaves_an_ordinary_model_folder(run, reference):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = run
    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        == AutoTokenizer.from_pretrained(reference).get_vocab()
    )
    assert policy.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] >= 3
    assert (folder / "generation_config.json").exists()
    assert not (folder / "training_args.bin").exists()
    card = (folder / "README.md").read_text()
    for part in (
        "tdpo fit --plugin tdpo2",
        "--learning-rate 0.001",
        "arXiv 2404.11999",
        "sha256",
        "epochs 2.0",
    ):
        assert part in card
    settings = (folder / "tdpo.yaml").read_text()
    assert "plugin: tdpo2" in settings
    assert "kl_estimator: fitted" in settings


def test_a_run_logs_what_preference_trainers_log(run):
    folder, printed = run
    events = metrics(folder)
    assert [event["step"] for event in events] == list(range(1, 13))
    for name in (
        "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
        "logps/chosen", "logps/rejected", "kl/chosen", "kl/rejected", "kl/margin", "entropy", "grad_norm",
        "tokens_per_second", "peak_memory_gb", "learning_rate", "epoch",
    ):  # fmt: skip
        assert np.isfinite(events[-1][name]), name
    first = events[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["kl/chosen"] == pytest.approx(0, abs=2e-2)
    assert events[-1]["loss"] < first["loss"]
    evaluations = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines() if "eval_loss" in x
    ]
    assert [event["step"] for event in evaluations] == [0, 6, 12]
    assert evaluations[-1]["eval_rewards/accuracies"] > evaluations[0]["eval_rewards/accuracies"]
    assert "step    12" in printed.stderr
    assert "trained for 12 steps" in printed.stdout


def test_one_batch_of_eight_equals_eight_of_one_accumulated(tmp_path, cache):
    for name, size, accumulation in (("a", 8, 1), ("b", 1, 8)):
        fit(
            cache, tmp_path / name, "--batch-size", size, "--gradient-accumulation", accumulation,
            "--max-steps", "6", "--set", "training.max_grad_norm=0.5", "--optimizer", "sgd",
        )  # fmt: skip
    a, b = metrics(tmp_path / "a"), metrics(tmp_path / "b")
    assert len(a) == len(b) == 6
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "kl/chosen", "logps/chosen"):
            assert x[name] == pytest.approx(y[name], abs=1e-5, rel=1e-5), name
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-5)


def test_the_gradient_of_a_short_last_step_is_the_mean_over_its_own_pairs(tmp_path, cache):
    """48 pairs in steps of 28: the second has 20, in micro-batches of 7, 7 and 6, of 14 and 6, or of 20."""
    # A rate at which a wrongly weighted gradient moves the weights far past the tolerance.
    common = ["--optimizer", "sgd", "--set", "training.max_grad_norm=0", "--learning-rate", "0.1"]
    fit(cache, tmp_path / "a", "--batch-size", "7", "--gradient-accumulation", "4", *common)
    fit(cache, tmp_path / "b", "--batch-size", "14", "--gradient-accumulation", "2", *common)
    fit(cache, tmp_path / "c", "--batch-size", "28", *common)
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-5)
    assert_same_weights(tmp_path / "a", tmp_path / "c", 1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path, cache):
    fit(cache, tmp_path / "a", "--max-steps", "4")
    fit(cache, tmp_path / "b", "--max-steps", "4", "--gradient-checkpointing")
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-6)


def test_a_killed_run_resumes_to_the_same_policy(tmp_path, cache):
    """Killed in the middle of the second epoch, after a checkpoint in the middle of the first."""
    options = ["--epochs", "3", "--save-steps", "4", "--batch-size", "8"]
    fit(cache, tmp_path / "whole", *options)
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tdpo", "fit", "--plugin", "tdpo2", "--cache", cache, "--output", folder,
            "--learning-rate", "1e-3", "--logging-steps", "1", *options,
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (folder / "checkpoint-8" / "trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "model.safetensors").exists()
    refused = fit(cache, folder, *options, check=False)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    fit(cache, folder, *options, "--resume")
    assert_same_weights(tmp_path / "whole", folder, 1e-6)
    a, b = metrics(tmp_path / "whole"), metrics(folder)
    assert [x["step"] for x in a] == [x["step"] for x in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=1e-6)


def test_resuming_a_finished_run_trains_nothing_more(tmp_path, run, cache):
    folder = tmp_path / "policy"
    shutil.copytree(run[0], folder)
    (folder / "model.safetensors").unlink()  # as if it had been killed just before the end
    fit(cache, folder, "--eval-cache", cache, "--epochs", "2", "--save-steps", "4", "--resume")
    assert_same_weights(run[0], folder, 0)
    assert (folder / "metrics.jsonl").read_text() == (run[0] / "metrics.jsonl").read_text()


def test_resuming_with_other_options_is_refused(tmp_path, run, cache):
    folder = tmp_path / "policy"
    shutil.copytree(run[0], folder)
    result = fit(
        cache, folder, "--eval-cache", cache, "--epochs", "3", "--save-steps", "4", "--resume", check=False
    )
    assert result.returncode == 2
    assert "epochs=2.0" in result.stderr


def test_python_and_command_line_do_the_same(tmp_path, cache):
    fit(cache, tmp_path / "a", "--max-steps", "3", "--set", "beta=0.3", plugin="dpo")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = tdpo.fit(
            "dpo",
            cache,
            output=str(tmp_path / "b"),
            max_steps=3,
            learning_rate=1e-3,
            logging_steps=1,
            set={"beta": 0.3},
            quiet=True,
        )
    finally:
        torch.set_num_threads(threads)
    assert result.steps == 3
    assert result.metrics["loss"] == pytest.approx(metrics(tmp_path / "a")[-1]["loss"], abs=1e-6)
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-6)


def test_the_order_of_rows_depends_on_seed_and_epoch_only(cache):
    from tdpo.core.training.data import EpochSampler

    sampler = EpochSampler(tdpo.open_cache(cache), seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second != list(EpochSampler(tdpo.open_cache(cache), seed=4))


def test_a_policy_that_is_not_the_reference_is_noticed(tmp_path, cache, reference):
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    result = fit(cache, tmp_path / "a", "--model", other, check=False)
    assert result.returncode == 2
    assert "does not start at the cached reference" in result.stderr
    assert "--other-start" in result.stderr
    fit(cache, tmp_path / "b", "--model", other, "--other-start", "--max-steps", "1")


def test_a_copy_of_the_reference_is_the_reference(tmp_path, cache, reference):
    shutil.copytree(reference, tmp_path / "copy")
    fit(cache, tmp_path / "a", "--model", tmp_path / "copy", "--max-steps", "1")
    assert metrics(tmp_path / "a")[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_dropout_is_off(tmp_path, reference):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tdpo.core.models import disable_dropout

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    )
    llama = make_model(50, attention_dropout=0.5)
    for each in (model, llama):
        disable_dropout(each)
        each.train()
        ids = torch.arange(10)[None]
        torch.testing.assert_close(each(ids).logits, each(ids).logits, rtol=0, atol=0)
    assert llama.config.attention_dropout == 0.5


def test_bfloat16_parameters_and_autocast_train(tmp_path, reference, pairs):
    tdpo.build_cache(reference, pairs, tmp_path / "c", ref_dtype="bfloat16", quiet=True)
    for name, flags in (("a", ["--dtype", "bfloat16"]), ("b", ["--bf16"])):
        fit(tmp_path / "c", tmp_path / name, *flags, "--max-steps", "3")
        events = metrics(tmp_path / name)
        assert events[0]["loss"] == pytest.approx(np.log(2), abs=0.02)
        assert np.isfinite(events[-1]["loss"])


def test_more_rows_than_memory_would_hold_are_read_by_row_group(tmp_path, reference):
    """The data set keeps no more than the reader's bounded row groups."""
    from torch.utils.data import DataLoader

    from tdpo.core.training.data import CachedPairs, EpochSampler, collate

    data = write_pairs(tmp_path / "pairs.jsonl", 300)
    reader = tdpo.build_cache(reference, data, tmp_path / "c", shard_rows=100, quiet=True)
    loader = DataLoader(
        CachedPairs(reader), 16, sampler=EpochSampler(reader, 0), collate_fn=collate, num_workers=2
    )
    tokens = sum(int(batch["lengths"].sum()) for batch in loader)
    assert tokens == reader.completion_tokens
