"""A training step on a GPU says what full logits in float64 say, in less memory than they take.

The same tests run on a CPU, where their tolerances are as tight: what differs is the device.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.training.arguments import training_arguments
from tdpo.core.training.run import make_trainer

BETA, ALPHA = 0.1, 0.5

# Of the gradient's norm, and of the loss: what rounding of that precision leaves.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

LAYOUTS = {
    "separate": {"prompt_sharing": "off", "packing": "off"},
    "shared": {"prompt_sharing": "on", "packing": "off"},
    "packed": {"prompt_sharing": "on", "packing": "on"},
    "in parts": {"batch_tokens": 64},
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def exact_cache(tmp_path_factory, reference, pairs):
    """A cache from which the reference's whole distributions are rebuilt without loss."""
    folder = tmp_path_factory.mktemp("exact") / "cache"
    tdpo.build_cache(
        reference, pairs, folder, distribution="exact", hidden_dtype="float32", limit=12, quiet=True
    )
    return folder


def policy(dtype="float32"):
    """Not the reference, so that no log-ratio and no KL is zero."""
    return make_model(len(make_tokenizer()), seed=7).to(getattr(torch, dtype))


def one_step(plugin, cache, folder, device, *, dtype="float32", bf16=False, **options):
    """The loss of all pairs of a cache in one training step, and the model with its gradients."""
    model, reader = policy(dtype), tdpo.open_cache(cache)
    config = FitConfig(
        plugin=[plugin],
        cache=str(cache),
        output=str(folder),
        batch_size=len(reader),
        max_steps=1,
        dtype=dtype,
        bf16=bf16,
        training={"use_cpu": device == "cpu"},
        **options,
    )
    arguments = training_arguments(config, False)
    trainer = make_trainer(
        config, tdpo.objective(plugin), reader, {}, model, args=arguments, check_start=False
    )
    trainer.model.train()
    batches, pairs = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, arguments.device)
    assert int(pairs) == len(reader)
    (batch,) = batches
    return float(trainer.training_step(trainer.model, batch, pairs)), trainer.model


def full_logits(plugin, reference, cache, dtype):
    """The same in float64, a sequence at a time, from two models' full logits."""
    from transformers import AutoModelForCausalLM

    model = policy(dtype).double()
    reference = AutoModelForCausalLM.from_pretrained(reference).double()
    losses = []
    for record in tdpo.open_cache(cache):
        ratio, kl = {}, {}
        for side in ("chosen", "rejected"):
            prompt, ids = record.pair.prompt_ids, record.pair.ids(side)
            tokens, rows = torch.tensor([[*prompt, *ids]]), torch.arange(len(ids))
            with torch.no_grad():
                ref_logp = reference(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logp = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            ratio[side] = (logp - ref_logp)[rows, torch.from_numpy(ids.astype(np.int64))].sum()
            kl[side] = (ref_logp.exp() * (ref_logp - logp)).sum()
        margin = ratio["chosen"] - ratio["rejected"]
        if plugin == "tdpo2":
            margin = margin - ALPHA * (kl["rejected"] - kl["chosen"].detach())
        losses.append(-torch.nn.functional.logsigmoid(BETA * margin))
    loss = torch.stack(losses).mean()
    loss.backward()
    return float(loss.detach()), model


def gradient(model):
    return torch.cat([weight.grad.double().cpu().flatten() for weight in model.parameters()])


def assert_same(ours, truth, tolerance):
    assert ours[0] == pytest.approx(truth[0], rel=tolerance)
    found, want = gradient(ours[1]), gradient(truth[1])
    assert float((found - want).norm() / want.norm()) < tolerance


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("plugin", ["dpo", "tdpo2"])
def test_a_step_has_the_loss_and_gradient_of_full_logits(
    plugin, precision, device, exact_cache, reference, tmp_path
):
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    ours = one_step(plugin, exact_cache, tmp_path, device, dtype=dtype, bf16=precision == "autocast")
    assert next(ours[1].parameters()).device.type == device
    truth = full_logits(plugin, reference, exact_cache, dtype)
    assert_same(ours, truth, TOLERANCE["float32" if precision == "float32" else "bfloat16"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_loss_and_gradient_of_full_logits(
    layout, device, exact_cache, reference, tmp_path
):
    ours = one_step("tdpo2", exact_cache, tmp_path, device, **LAYOUTS[layout])
    assert_same(ours, full_logits("tdpo2", reference, exact_cache, "float32"), TOLERANCE["float32"])


def test_recomputed_activations_change_nothing(device, exact_cache, tmp_path):
    kept = one_step("tdpo2", exact_cache, tmp_path / "a", device)
    recomputed = one_step("tdpo2", exact_cache, tmp_path / "b", device, gradient_checkpointing=True)
    assert_same(recomputed, kept, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("plugin", ["dpo", "tdpo2"])
def test_a_step_takes_less_memory_than_full_logits_alone(plugin):
    """Completions of 8,192 tokens over 128,000 logits: four gigabytes in float32."""
    from tdpo.core.scoring.forward import enable_scoring

    vocab, pairs, length = 128_000, 8, 512
    model = make_model(vocab, max_position_embeddings=2 * length).to("cuda", torch.bfloat16)
    enable_scoring(model)
    generator = torch.Generator("cuda").manual_seed(0)
    ids = torch.randint(vocab, (2 * pairs, 2 * length), generator=generator, device="cuda")
    positions = torch.arange(ids.numel(), device="cuda").view_as(ids)[:, length - 1 : -1].flatten()
    sample = torch.randint(vocab, (len(positions), 16), generator=generator, device="cuda")
    labels = ids[:, length:].reshape(-1, 1)
    score_ids = torch.cat([labels, sample], 1) if plugin == "tdpo2" else labels
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scores = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        score_positions=positions,
        score_ids=score_ids,
        score_entropy=True,
    )
    scores.logp.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < len(positions) * vocab * 4


@pytest.mark.parametrize("plugin", ["dpo", "tdpo2"])
def test_a_fit_runs_from_end_to_end_and_learns(plugin, device, cache, tmp_path):
    found = tdpo.fit(
        plugin,
        cache,
        output=tmp_path / "run",
        learning_rate=1e-3,
        epochs=2,
        batch_size=16,
        logging_steps=1,
        bf16=device == "cuda",
        training={"use_cpu": device == "cpu"},
        quiet=True,
    )
    lines = [json.loads(line) for line in (Path(found.output) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-2)
    assert losses[-1] < losses[0]
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(found.output).state_dict()
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
