"""Low-rank adapters: trained as a plain loop with full logits would, saved alone or merged, resumed."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, V, model_of
from support import make_model, make_tokenizer, run_tdpo
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.core.adapters import find_adapter
from tdpo.core.errors import ConfigError, ModelError

peft = pytest.importorskip("peft")

RATE, STEPS, BATCH = 1e-2, 4, 4
COMMON = {
    "learning_rate": RATE, "schedule": "constant", "batch_size": BATCH, "max_steps": STEPS,
    "logging_steps": 1, "lora": 4, "quiet": True,
}  # fmt: skip
# AdamW turns a gradient of rounding errors into a step of the learning rate; SGD does not.
LINEAR = {"optimizer": "sgd", "training": {"max_grad_norm": 0}}


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    # Wide enough for a 4-bit block.
    return save(make_model(320, hidden_size=64), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def lora_cache(base, pairs, tmp_path_factory):
    """A cache of ``base``. Treat as read-only."""
    folder = tmp_path_factory.mktemp("lora") / "cache"
    tdpo.build_cache(base, pairs, folder, quiet=True)
    return folder


def fit(cache, output, plugin="dpo", **options):
    return tdpo.fit(plugin, cache, output=str(output), **{**COMMON, **options})


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event["loss"] for event in map(json.loads, lines) if "loss" in event]


def adapter_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def completion_logps(model, record, side):
    prompt, ids = record.pair.prompt_ids, getattr(record.pair, f"{side}_ids")
    rows = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(ids)), torch.from_numpy(ids.astype(np.int64))]


def dpo_loss(policy, reference, record):
    """The paper's formula, from the full logits of two models, one sequence at a time."""
    ratio = {}
    for side in ("chosen", "rejected"):
        with torch.no_grad():
            ref_logp = completion_logps(reference, record, side).sum()
        ratio[side] = completion_logps(policy, record, side).sum() - ref_logp
    return -torch.nn.functional.logsigmoid(0.1 * (ratio["chosen"] - ratio["rejected"]))


def train_by_hand(policy, reference, cache, rate):
    """The run again: torch's SGD on full logits, with the reference beside the policy; the losses."""
    from tdpo.core.training.data import EpochSampler

    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=rate)
    reader = tdpo.open_cache(cache)
    order, seen = list(EpochSampler(reader, 0)), []
    for step in range(STEPS):
        records = reader.read(order[step * BATCH : (step + 1) * BATCH])
        loss = torch.stack([dpo_loss(policy, reference, record) for record in records]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def as_started(run, base, **options):
    """The LoRA before its first step: of the run's shape, from the run's seed."""
    settings = peft.LoraConfig.from_pretrained(run)
    settings.inference_mode = False
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    torch.manual_seed(0)
    return peft.get_peft_model(model, settings)


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (0.3, {}),
        (1.0, {"lora_targets": "q_proj, down_proj", "lora_alpha": 3}),
        (3.0, {"lora_targets": r".*\.1\.mlp\.(up|down)_proj"}),
        (0.3, {"lora_head": True}),
        (2.0, {"lora_head": True, "lora_targets": "lm_head", "gradient_checkpointing": True}),
    ],
    ids=["all linear layers", "named layers", "a regular expression", "head too", "head alone"],
)
def test_a_lora_trains_as_peft_does_with_full_logits(lora_cache, base, tmp_path, rate, options):
    run = fit(lora_cache, tmp_path / "run", **LINEAR, learning_rate=rate, **options).output
    policy, reference = as_started(run, base), AutoModelForCausalLM.from_pretrained(base)
    want = train_by_hand(policy, reference, lora_cache, rate)
    assert losses(run) == pytest.approx(want, abs=2e-5)
    theirs = {n.replace(".default", ""): p for n, p in policy.named_parameters() if p.requires_grad}
    ours, started = adapter_weights(run), dict(as_started(run, base).named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value.detach(), rtol=0, atol=1e-4, msg=name)
    moved = [n for n, p in policy.named_parameters() if (p - started[n]).abs().max() > 1e-3]
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.fixture(scope="module")
def run(lora_cache, tmp_path_factory):
    """A finished run with a LoRA on the body. Treat as read-only."""
    return fit(
        lora_cache, tmp_path_factory.mktemp("run") / "policy", save_steps=2, optimizer="adamw_8bit"
    ).output


def policy_logps(model, cache):
    with torch.no_grad():
        return torch.cat(
            [completion_logps(model, record, side) for record in tdpo.open_cache(cache).read(range(6))
             for side in ("chosen", "rejected")]
        )  # fmt: skip


def test_the_folder_holds_the_lora_and_says_so(run, base):
    assert not list(run.rglob("model.safetensors"))
    assert {f"checkpoint-{n}" for n in (2, 4)} <= {path.name for path in run.iterdir()}
    config = json.loads((run / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert all("lora_" in name for name in adapter_weights(run))
    card = (run / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"LoRA of rank 4 for `{base}`" in card
    assert "base_model:" not in card  # a folder is no model that a hub knows
    assert "AutoPeftModelForCausalLM.from_pretrained" in card


def test_the_folder_opens_as_the_trained_policy(run, base, lora_cache, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)  # the base is named in full
    opened = policy_logps(peft.AutoPeftModelForCausalLM.from_pretrained(run), lora_cache)
    plain = policy_logps(AutoModelForCausalLM.from_pretrained(base), lora_cache)
    assert (opened - plain).abs().max() > 0.1
    by_hand = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run)
    torch.testing.assert_close(policy_logps(by_hand, lora_cache), opened)
    torch.testing.assert_close(policy_logps(AutoModelForCausalLM.from_pretrained(run), lora_cache), opened)
    assert AutoTokenizer.from_pretrained(run).get_vocab() == make_tokenizer().get_vocab()


def test_only_the_lora_has_an_optimiser_state(run):
    state = torch.load(run / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(adapter_weights(run)) > 0


def test_a_cut_run_resumes_to_the_same_lora(run, lora_cache, tmp_path):
    folder = shutil.copytree(run, tmp_path / "policy")
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "adapter_model.safetensors").unlink()
    fit(lora_cache, folder, save_steps=2, optimizer="adamw_8bit", resume=True)
    assert losses(folder) == pytest.approx(losses(run), abs=1e-6)
    for name, value in adapter_weights(run).items():
        torch.testing.assert_close(adapter_weights(folder)[name], value, rtol=0, atol=1e-6)


def test_a_run_killed_before_its_lora_was_saved_is_finished_by_resuming(run, lora_cache, tmp_path):
    folder = shutil.copytree(run, tmp_path / "policy")
    (folder / "adapter_model.safetensors").unlink()
    fit(lora_cache, folder, save_steps=2, optimizer="adamw_8bit", resume=True)
    for name, value in adapter_weights(run).items():
        torch.testing.assert_close(adapter_weights(folder)[name], value, rtol=0, atol=0)
    assert losses(folder) == losses(run)


def test_a_merged_policy_is_a_whole_model_that_says_the_same(run, lora_cache, tmp_path):
    folder = shutil.copytree(run, tmp_path / "policy")
    fit(lora_cache, folder, save_steps=2, optimizer="adamw_8bit", resume=True, merge=True)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    want = policy_logps(peft.AutoPeftModelForCausalLM.from_pretrained(run), lora_cache)
    torch.testing.assert_close(policy_logps(merged, lora_cache), want, rtol=0, atol=1e-4)
    assert "library_name: transformers" in (folder / "README.md").read_text()


def test_a_trained_lora_is_the_reference_of_the_next_round(run, base, lora_cache, pairs, tmp_path):
    """Its cache starts a fit at the merged policy, and so does naming its folder."""
    tdpo.build_cache(base, pairs, tmp_path / "next", ref_adapter=str(run), limit=12, quiet=True)
    with pytest.raises(ModelError, match="a LoRA saved for that base would lose it; add --merge"):
        fit(tmp_path / "next", tmp_path / "refused")
    result = fit(tmp_path / "next", tmp_path / "merged", merge=True, max_steps=1)
    assert losses(result.output)[0] == pytest.approx(np.log(2), abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained(result.output)
    named = fit(tmp_path / "next", tmp_path / "named", model=str(run), lora=None, max_steps=1)
    assert losses(named.output)[0] == pytest.approx(np.log(2), abs=1e-4)
    with pytest.raises(ModelError, match=f"--ref {re.escape(str(base.resolve()))} --ref-adapter"):
        tdpo.build_cache(run, pairs, tmp_path / "again", quiet=True)


def test_a_lora_on_a_tied_head_leaves_the_input_embedding_alone(pairs, tmp_path):
    folder = save(make_model(320, tie_word_embeddings=True), tmp_path / "tied")
    tdpo.build_cache(folder, pairs, tmp_path / "cache", quiet=True)
    options = {**LINEAR, "learning_rate": 2.0, "lora_head": True, "lora_targets": "lm_head"}
    alone = fit(tmp_path / "cache", tmp_path / "alone", **options).output
    reference = AutoModelForCausalLM.from_pretrained(folder)
    want = train_by_hand(as_started(alone, folder), reference, tmp_path / "cache", 2.0)
    assert losses(alone) == pytest.approx(want, abs=2e-5)
    assert set(adapter_weights(alone)) == {
        f"base_model.model.lm_head.lora_{x}.weight" for x in "AB"
    }  # not the head itself
    merged = fit(tmp_path / "cache", tmp_path / "merged", merge=True, **options).output
    logps = [
        policy_logps(model, tmp_path / "cache")
        for model in (
            peft.AutoPeftModelForCausalLM.from_pretrained(alone),
            AutoModelForCausalLM.from_pretrained(merged),
        )
    ]
    torch.testing.assert_close(*logps, rtol=0, atol=1e-4)
    before = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    after = AutoModelForCausalLM.from_pretrained(merged).get_input_embeddings().weight
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def trained_gradients(base, **options):
    """The gradient of a score, by parameter, of the policy as a fit opens it, and with its checkpointing."""
    from tdpo.core.config.fit import FitConfig
    from tdpo.core.models import find_model
    from tdpo.core.scoring.forward import enable_scoring
    from tdpo.core.training.policy import open_policy

    config = FitConfig(plugin="dpo", lora=4, **options)
    model = open_policy(config, find_model(str(base), option="--model"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    if config.gradient_checkpointing:
        settings = dict(config.training.get("activation_checkpointing_kwargs", {}))
        offload = settings.pop("offload", False)
        model.activation_checkpointing_enable(settings or None, offload=offload)
    enable_scoring(model)
    model.train()
    ids = torch.arange(24).reshape(2, 12) * 7 % 320
    scores = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), score_positions=torch.tensor([3, 4, 15, 20]),
        score_ids=torch.tensor([[9], [8], [7], [6]]),
    )  # fmt: skip
    scores.logp.sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "settings", [{}, {"use_reentrant": True}, pytest.param({"offload": True}, marks=pytest.mark.gpu)], ids=str
)
def test_recomputed_and_offloaded_activations_give_a_lora_the_same_gradients(base, settings):
    plain = trained_gradients(base)
    again = trained_gradients(
        base, gradient_checkpointing=True, training={"activation_checkpointing_kwargs": settings}
    )
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)


def test_a_dropout_is_there_only_where_it_was_asked_for(base):
    from tdpo.core.config.fit import FitConfig
    from tdpo.core.models import find_model
    from tdpo.core.training.policy import open_policy

    def dropouts(**options):
        model = open_policy(FitConfig(plugin="dpo", **options), find_model(str(base), option="--model"))
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert dropouts(lora=4) <= {0.0}
    assert dropouts(lora=4, lora_dropout=0.25) == {0.25}


def test_the_seed_alone_decides_how_a_lora_starts(lora_cache, tmp_path):
    options = {"max_steps": 1, "learning_rate": 1e-12}
    torch.manual_seed(5)
    a = adapter_weights(fit(lora_cache, tmp_path / "a", **options).output)
    torch.manual_seed(6)
    b = adapter_weights(fit(lora_cache, tmp_path / "b", **options).output)
    c = adapter_weights(fit(lora_cache, tmp_path / "c", seed=1, **options).output)
    name = next(name for name in a if "lora_A" in name)
    torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-9)
    assert (a[name] - c[name]).abs().max() > 1e-2


def test_parameters_in_bfloat16_get_a_lora_in_float32(base, lora_cache, tmp_path):
    result = fit(
        lora_cache, tmp_path / "run", dtype="bfloat16", learning_rate=1e-6, max_steps=2, other_start=True
    )
    weights = adapter_weights(result.output)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    # Steps of 1e-6 are not lost, as they would be in bfloat16.
    moved = [value.abs().max() for name, value in weights.items() if "lora_B" in name]
    assert all(0 < float(size) <= 4e-6 for size in moved)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def quantised(request, base, pairs, tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("quantised") / "cache"
    tdpo.build_cache(base, pairs, folder, ref_quantization=request.param, quiet=True)
    return request.param, folder


def test_a_lora_beside_a_quantised_model_starts_at_the_same_quantised_reference(quantised, tmp_path):
    bits, cache = quantised
    result = fit(cache, tmp_path / "run", quantization=bits, learning_rate=1e-3)
    seen = losses(result.output)
    # The loss of 8-bit layers depends on what else is in the batch.
    assert seen[0] == pytest.approx(np.log(2), abs=1e-5 if bits == "4bit" else 0.1)
    assert all("lora_" in name for name in adapter_weights(result.output))
    assert f"in {bits}" in (result.output / "README.md").read_text()


def test_a_lora_beside_a_4bit_model_is_evaluated_beside_it(base, pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    cache = tmp_path / "cache"
    tdpo.build_cache(base, pairs, cache, ref_quantization="4bit", quiet=True)
    run = fit(
        cache, tmp_path / "run", quantization="4bit", learning_rate=1e-2, eval_cache=[str(cache)]
    ).output
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in logged if "eval_loss" in event][-1]
    found = tdpo.evaluate(run, quiet=True).document["evaluations"][0]["figures"]
    for name in ("loss", "rewards/margins", "logps/chosen"):
        assert found[name]["value"] == pytest.approx(last[f"eval_{name}"], rel=1e-4, abs=1e-5)


def test_a_lora_beside_a_4bit_model_trains_as_peft_does_with_full_logits(base, pairs, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    cache = tmp_path / "cache"
    tdpo.build_cache(base, pairs, cache, ref_quantization="4bit", quiet=True)
    run = fit(cache, tmp_path / "run", quantization="4bit", **LINEAR, learning_rate=0.3).output
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    reference = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings)
    want = train_by_hand(as_started(run, base, quantization_config=settings), reference, cache, 0.3)
    assert losses(run) == pytest.approx(want, abs=2e-5)


def test_a_quantised_policy_away_from_its_reference_is_told_how_to_build_the_cache(lora_cache, tmp_path):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(
        ModelError, match="build the cache with --ref-quantization 4bit, or pass --other-start"
    ):
        fit(lora_cache, tmp_path / "run", quantization="4bit")
    result = fit(lora_cache, tmp_path / "other", quantization="4bit", other_start=True, max_steps=1)
    assert losses(result.output)[0] != pytest.approx(np.log(2), abs=1e-3)


def test_a_full_policy_of_a_quantised_reference_is_told_of_the_lora(quantised, tmp_path):
    bits, cache = quantised
    with pytest.raises(ModelError, match=f"--lora RANK --quantization {bits}, or pass --other-start"):
        fit(cache, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora": None, "quantization": "4bit"}, "--quantization 4bit: .* add --lora RANK"),
        (
            {"lora": None, "lora_alpha": 4},
            "--lora-alpha is about a LoRA, and none is trained: add --lora RANK",
        ),
        ({"lora": None, "lora_dropout": 0.1}, "--lora-dropout is about a LoRA"),
        ({"lora": None, "lora_targets": "q_proj"}, "--lora-targets is about a LoRA"),
        ({"lora": None, "lora_head": True}, "--lora-head is about a LoRA"),
        ({"lora": None, "merge": True}, "--merge is about a LoRA"),
        ({"quantization": "4bit", "merge": True}, "--merge: .* 4bit cannot be merged"),
        (
            {"lora_targets": "query,value"},
            "--lora-targets query,value: query matches no layer; the linear layers are .*self_attn.q_proj",
        ),
        ({"lora_targets": "q_proj,v_prj"}, "v_prj matches no layer"),
        ({"lora_targets": "(q_proj"}, "cannot be used .missing \\)"),
        ({"lora_targets": r"layers\.9\..*"}, "matches no layer"),
        ({"lora_targets": "input_layernorm"}, "input_layernorm: cannot be used .*; the linear layers are"),
        (
            {"training": {"activation_checkpointing_kwargs": {"offload": True}}},
            "offload keeps activations off the GPU, and there is none here",
        ),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(lora_cache, tmp_path, options, says):
    with pytest.raises((ConfigError, ModelError), match=says) as caught:
        fit(lora_cache, tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_order_in_which_layers_are_named_is_not_another_adapter(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied")
    config = json.loads((copied / "adapter_config.json").read_text())
    config["target_modules"].reverse()
    (copied / "adapter_config.json").write_text(json.dumps(config))
    assert find_adapter(str(copied)).identity() == find_adapter(str(run)).identity()


@pytest.mark.parametrize("head", [False, True], ids=["body", "body and head"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_scores_and_trains_with_a_lora(architecture, head, tmp_path):
    from tdpo.core.config.fit import FitConfig
    from tdpo.core.models import find_model
    from tdpo.core.scoring.forward import enable_scoring
    from tdpo.core.training.lora import add_lora

    plain = model_of(architecture)
    plain.save_pretrained(tmp_path)
    # peft refuses the layers of Mamba that its kernels read past.
    targets = "in_proj,x_proj" if architecture == "mamba" else "all-linear"
    config = FitConfig(plugin="dpo", lora=2, lora_targets=targets, lora_head=head)
    model = add_lora(plain, config, find_model(str(tmp_path), option="--model"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    ids = torch.randint(0, V, (2, 9), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    want = model(**inputs).logits.log_softmax(-1)[:, 2:-1].gather(-1, ids[:, 3:, None])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(want.pow(2).sum(), list(trained.values()))
    enable_scoring(model)
    positions = torch.cat([torch.arange(2, 8), torch.arange(11, 17)])
    scores = model(**inputs, score_positions=positions, score_ids=ids[:, 3:].reshape(-1, 1))
    got = scores.logp.reshape(want.shape)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(got.pow(2).sum(), list(trained.values()))
    for name, a, b in zip(trained, ours, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()), msg=name)


@pytest.mark.slow
def test_two_processes_train_the_lora_that_one_does(lora_cache, tmp_path):
    for name, size, processes in (("one", 8, 1), ("two", 4, 2)):
        run_tdpo(
            "fit", "--plugin", "dpo", "--cache", lora_cache, "--output", tmp_path / name, "--lora", 4,
            "--lora-head", "--optimizer", "sgd", "--learning-rate", 0.3, "--schedule", "constant",
            "--max-steps", 3, "--logging-steps", 1, "--batch-size", size, "--num-processes", processes,
            "--set", "training.max_grad_norm=0",
        )  # fmt: skip
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, two = adapter_weights(tmp_path / "one"), adapter_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for label, value in one.items():
        torch.testing.assert_close(two[label], value, rtol=0, atol=1e-5, msg=label)
