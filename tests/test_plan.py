"""`tdpo plan`: its figures are those of tensors really made, and its advice is the cheapest that fits."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, model_of
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import tdpo
from tdpo.cache.pairs import Pair
from tdpo.core.cli import tdpo as command_line
from tdpo.core.config.fit import FitConfig
from tdpo.core.errors import ConfigError, ModelError
from tdpo.core.models import ModelSource
from tdpo.core.scoring.layout import lay_out
from tdpo.core.sizes import parse_size, size_text
from tdpo.core.training.arguments import training_arguments
from tdpo.core.training.planning.advice import ladder, smaller_passes
from tdpo.core.training.planning.budget import as_flags
from tdpo.core.training.planning.counting import count_step, layers_alike
from tdpo.core.training.planning.optimizers import state_bytes
from tdpo.core.training.planning.step import trace_step

CONFIG = FitConfig(plugin=["dpo"])


def micro_batch(rows=4, length=24):
    pairs = [Pair.make(row, range(8), range(length - 8), range(length - 8)) for row in range(rows // 2)]
    layout = lay_out(pairs)
    return {
        "input_ids": layout.input_ids,
        "attention_mask": layout.attention_mask,
        "score_positions": layout.positions,
        "score_ids": layout.labels[:, None],
    }


def traced(model_config, config=CONFIG, micro=None, *, device="cpu", attention=None, accumulates=False):
    source = ModelSource("tiny", None, model_config)
    counted = trace_step if model_config.get_text_config().num_hidden_layers < 9 else count_step
    return counted(
        config,
        source,
        training_arguments(config, False),
        micro or micro_batch(),
        device=device,
        attention=attention,
        accumulates=accumulates,
    )


def held(tensors):
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("name", [*ARCHITECTURES])
def test_weights_gradients_and_state_are_those_of_the_real_model(name):
    model = model_of(name)
    found = traced(model.config)
    weights = held([*model.parameters(), *model.buffers()])
    parameters = held(model.parameters())
    update = found.phases["update"]
    assert update["weights"] == pytest.approx(weights, rel=0.02)
    assert found.trained == sum(p.numel() for p in model.parameters())
    # AdamW keeps two numbers a parameter, and how many steps it has taken.
    assert update["optimiser"] == pytest.approx(2 * parameters, rel=0.02)
    assert update["gradients"] == parameters == found.gradients


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "sdpa") for name in ("llama", "gpt2", "gpt_neox", "olmo2", "qwen3")]
    + [("llama", "eager"), ("gemma2", "eager")],
)
def test_activations_are_at_least_what_autograd_saves_and_not_much_more(name, attention):
    model = model_of(name)
    model.set_attn_implementation(attention)
    micro = micro_batch(8, 48)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.base_model(
            input_ids=micro["input_ids"], attention_mask=micro["attention_mask"], use_cache=False
        )
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    del output
    found = traced(model.config, micro=micro, attention=attention)
    counted = max(kinds.get("activations", 0) for kinds in found.phases.values())
    assert saved * 0.98 <= counted <= 1.6 * saved + 200_000


def deep(layers=16, **options):
    from transformers import AutoConfig

    return AutoConfig.for_model("qwen3", **{**ARCHITECTURES["qwen3"], "num_hidden_layers": layers, **options})


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"bf16": True}, {"lora": 4}, {"lora": 4, "quantization": "4bit"}],
    ids=str,
)
def test_a_deep_model_is_told_from_two_shallow_ones(options):
    config = replace(CONFIG, **options)
    source = ModelSource("deep", None, deep())
    assert layers_alike(source)
    rest = {"device": "cpu", "attention": None, "accumulates": False}
    arguments = training_arguments(config, False)
    whole = trace_step(config, source, arguments, micro_batch(), **rest)
    told = count_step(config, source, arguments, micro_batch(), **rest)
    assert sum(told.peak(None).values()) == pytest.approx(sum(whole.peak(None).values()), rel=0.01)
    assert told.trained == whole.trained


def total(**options):
    micro = options.pop("micro", None)
    device = options.pop("device", "cuda")
    return sum(
        traced(deep(4, hidden_size=64, vocab_size=500), replace(CONFIG, **options), micro, device=device)
        .peak(None)
        .values()
    )


def test_less_is_less():
    wide = micro_batch(16, 64)
    asked = total(micro=wide)
    assert total(micro=micro_batch(8, 64)) < asked
    assert total(micro=micro_batch(16, 32)) < asked
    assert total(micro=wide, gradient_checkpointing=True) < asked
    assert total(micro=wide, dtype="bfloat16") < asked
    # Where one row is all there is, the parameters matter most.
    plain, lora = total(), total(lora=4)
    assert lora < plain
    assert total(lora=4, quantization="4bit") < total(lora=4, quantization="8bit") < lora
    assert total(optimizer="adamw_bnb_8bit") < plain
    assert total(optimizer="sgd") < plain


def test_gradients_of_earlier_micro_batches_count():
    config = deep(4)
    first = sum(traced(config, micro=micro_batch(16, 64)).phases["forward"].values())
    later = sum(traced(config, micro=micro_batch(16, 64), accumulates=True).phases["forward"].values())
    assert later > first


def test_an_optimiser_on_a_gpu_takes_all_parameters_at_once():
    config = deep(4)
    step = "optimiser's step"
    cpu, gpu = (traced(config, device=device).phases["update"][step] for device in ("cpu", "cuda"))
    assert cpu < gpu


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "rmsprop_bnb"])
def test_the_state_of_bitsandbytes_is_what_it_makes(name):
    pytest.importorskip("bitsandbytes")
    from transformers import Trainer

    model = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(300, 64), "linear": torch.nn.Linear(64, 512)}
    )
    cls, options = Trainer.get_optimizer_cls_and_kwargs(
        training_arguments(replace(CONFIG, optimizer=name), False), model
    )
    optimizer = cls(model["linear"].parameters(), **options)
    sizes = 0
    for index, parameter in enumerate(model["linear"].parameters()):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
        state = optimizer.state[parameter]
        # The tables of codes are shared by all parameters.
        sizes += held([v for k, v in state.items() if torch.is_tensor(v) and not k.startswith("qmap")])
    model["embedding"].requires_grad_(False)
    here, paged = state_bytes(name, model)
    assert paged == 0
    assert here == pytest.approx(sizes, rel=0.02)


def test_embeddings_and_pages_of_bitsandbytes():
    model = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(2000, 64), "linear": torch.nn.Linear(64, 4000)}
    )
    embedding, linear, bias = 2000 * 64, 64 * 4000, 4000
    plain, _ = state_bytes("adamw_bnb_8bit", model)
    assert plain == 8 * embedding + round(2 * linear * (1 + 4 / 256)) + 8 * bias
    assert state_bytes("paged_adamw_32bit", model) == (8 * bias, 8 * (embedding + linear))
    assert state_bytes("adamw_torch", model) is None


# --- Advice -------------------------------------------------------------------------------------------------


def test_the_ladder_leaves_out_what_was_asked_for():
    rungs = [*ladder(CONFIG, "cuda")]
    assert rungs[0] == {}
    assert rungs[1] == {"gradient_checkpointing": True}
    assert rungs[-1]["quantization"] == "4bit"
    assert rungs[-1]["lora"]
    asked = replace(CONFIG, gradient_checkpointing=True, dtype="bfloat16", lora=8)
    assert [*ladder(asked, "cuda")] == [{}, {"quantization": "4bit"}]
    assert all("quantization" not in rung and "optimizer" not in rung for rung in ladder(CONFIG, "cpu"))


@given(st.integers(1, 100_000), st.integers(1, 5_000))
def test_passes_get_shorter_down_to_the_longest_pair(tokens, least):
    sizes = smaller_passes(tokens, least)
    assert sizes[-1] == least
    assert all(a > b for a, b in itertools.pairwise(sizes))
    assert all(size <= max(tokens // 2, least) for size in sizes)


@pytest.fixture(scope="module")
def plans(reference, cache):
    """Plans of the same fit for GPUs of different sizes."""

    def plan(memory, **options):
        return tdpo.plan_fit("tdpo2", cache, model=str(reference), gpu_memory=memory, **options)

    return plan


def test_the_advice_is_the_first_that_fits(plans):
    asked = plans("80GiB").asked
    assert plans(f"{asked.needed / 1e3 + 1:.3f}kB").advice.options == {}
    small = plans(f"{(asked.needed - 1e4) / 1e3:.3f}kB")
    assert not small.fits
    assert small.advice.options
    assert small.advice.needed <= small.memory
    assert small.advice.flags in str(small)
    # What is named is what those options take.
    again = plans("80GiB", **small.advice.options).asked
    assert again.total == pytest.approx(small.advice.total, rel=0.01)


def test_nothing_fits_a_gpu_that_its_own_context_fills(plans):
    tiny = plans("1MB")
    assert tiny.advice is None
    assert tiny.least.needed <= tiny.asked.needed
    assert "nothing tried fits" in str(tiny)


def test_rows_add_up_and_survive_json(plans):
    found = plans("24GB")
    document = json.loads(json.dumps(found.to_dict()))
    asked = document["asked"]
    assert asked["total"] == sum(asked["rows"].values())
    assert asked["needed"] == asked["total"] + asked["headroom"]
    assert document["fits"]
    assert document["memory"] == 24_000_000_000
    assert {"weights", "optimiser"} <= asked["rows"].keys()


def test_a_folder_without_weights_will_do(tmp_path, reference, cache):
    for path in reference.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="holds no weights"):
        tdpo.fit("dpo", cache, model=str(tmp_path), output=str(tmp_path / "run"), quiet=True)
    bare = tdpo.plan_fit(cache=cache, model=str(tmp_path), gpu_memory="24GB")
    assert bare.asked.total > 0
    assert not (tmp_path / "run").exists()


def test_the_command_line(tmp_path, monkeypatch, reference, cache):
    monkeypatch.chdir(tmp_path)
    words = ["plan", "--cache", str(cache), "--model", str(reference), "--gpu-memory", "24GB"]
    told = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert told.exit_code == 0
    assert "fits: " in told.output
    told = CliRunner().invoke(command_line, [*words, "--plugin", "dpo", "--lora", "4", "--json"])
    found = json.loads(told.stdout)
    assert found["asked"]["trained_parameters"] < found["parameters"]
    assert [*tmp_path.iterdir()] == []


# --- Sizes and flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24e9), ("80GiB", 80 * 2**30), ("1.5 tb", 1.5e12), ("24g", 24e9), ("7Mi", 7 * 2**20)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text, "--gpu-memory") == size


@pytest.mark.parametrize("text", ["24 potatoes", "24", "", "GB", "-1GB", "0GB", "nan GB", "1e3GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text, "--gpu-memory")


@settings(max_examples=50)
@given(st.integers(1, 999).flatmap(lambda n: st.sampled_from([n * 1000**power for power in range(5)])))
def test_a_size_that_is_written_is_read_again(size):
    assert size < 1000 or parse_size(size_text(size), "x") == size


def test_flags_are_typed_as_the_command_takes_them():
    options = {"batch_tokens": 2048, "gradient_checkpointing": True, "bf16": False, "dtype": "bfloat16"}
    assert as_flags(options) == "--batch-tokens 2048 --gradient-checkpointing --no-bf16 --dtype bfloat16"
