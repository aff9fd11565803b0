"""Models and tokenizers."""

import warnings

from support import make_model, make_tokenizer

from .case import Case

BUILD = "tdpo cache build --ref {} --dataset pairs.jsonl --out new"


def build(ref, *more):
    return " ".join([BUILD.format(ref), *more])


def no_config(world):
    world.write("empty/notes.txt", "a model will be here")


def no_weights(world):
    world.write("config-only/config.json", (world.materials.reference / "config.json").read_bytes())


def adapter(world):
    world.write("adapter/adapter_config.json", "{}")


def other_adapter(world):
    from peft import LoraConfig, get_peft_model

    larger = make_model(len(make_tokenizer()), hidden_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        adapted = get_peft_model(larger, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(world.folder / "lora")


def spoilt(file, content):
    def prepare(world):
        world.copy_model("spoilt")
        world.write(f"spoilt/{file}", content)

    return prepare


def edited(file, **changes):
    def prepare(world):
        world.copy_model("edited")
        world.edit(f"edited/{file}", lambda document: document.update(changes))

    return prepare


def weights_cut(world):
    world.copy_model("cut")
    world.cut("cut/model.safetensors")


def no_tokenizer(world):
    make_model(50).save_pretrained(world.folder / "bare")


def no_eos(world):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    world.new_model("no-eos", tokenizer)


def larger_tokenizer(world):
    world.new_model("small", vocab_size=200)


def not_a_number(world):
    import torch
    from safetensors.torch import load_file, save_file

    world.copy_model("nan")
    path = world.folder / "nan" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


def other_tokenizer(world):
    world.new_model("other", make_tokenizer(extra=["<more>"]))


def padded(world):
    world.new_model("padded", vocab_size=len(make_tokenizer()) + 8)


CASES = (
    Case("no such model", build("modle"), "no such folder here, and no model of that name"),
    Case("a file in a model's place", build("pairs.jsonl"), "is a file; give the folder"),
    Case("a folder without a model", build("empty"), "config.json is missing", no_config),
    Case("a model folder without weights", build("config-only"), "holds no weights", no_weights),
    Case("an adapter without its model", build("adapter"), "adapter", adapter),
    Case("no such adapter", build("model", "--ref-adapter", "lora"), "no such folder here, and no adapter"),
    Case(
        "an adapter's folder without an adapter",
        build("model", "--ref-adapter", "empty"),
        "holds no adapter .adapter_config.json is missing",
        no_config,
    ),
    Case(
        "an adapter without weights",
        build("model", "--ref-adapter", "adapter"),
        "holds no weights .adapter_model.safetensors is missing",
        adapter,
    ),
    Case(
        "an adapter for another model",
        build("model", "--ref-adapter", "lora"),
        "--ref-adapter lora does not fit the model",
        other_adapter,
        needs=("peft",),
    ),
    Case(
        "a quantisation that there is none of",
        build("model", "--ref-quantization", "5bit"),
        "ref_quantization='5bit' is not one of",
    ),
    Case(
        "every log-prob of a large vocabulary",
        build("edited", "--distribution full"),
        "--distribution full: edited has a vocabulary of 100,000",
        edited("config.json", vocab_size=100_000),
    ),
    Case("a config.json that is no JSON", build("spoilt"), "config.json", spoilt("config.json", "{")),
    Case(
        "an architecture that transformers does not know",
        build("edited"),
        "config.json cannot be used",
        edited("config.json", model_type="llamma", architectures=None),
    ),
    Case(
        "a model that is no causal language model",
        build("edited"),
        "'vit' model is no causal language model",
        edited("config.json", model_type="vit", architectures=None),
    ),
    Case("weights cut short", build("cut"), "does not load", weights_cut),
    Case(
        "weights of another shape than config.json says",
        build("edited"),
        r"mlp.down_proj.weight is \[32, 64\] there and \[32, 96\] in config.json, and 5 more",
        edited("config.json", intermediate_size=96),
    ),
    Case(
        "weights without some of the layers that config.json promises",
        build("edited"),
        r"layers.2.input_layernorm.weight is not there, and \d+ more",
        edited("config.json", num_hidden_layers=3),
    ),
    Case("a model without a tokenizer", build("bare"), "tokenizer", no_tokenizer),
    Case(
        "a damaged tokenizer",
        build("spoilt"),
        "tokenizer",
        spoilt("tokenizer.json", '{"version": "1.0", "model": '),
    ),
    Case("a tokenizer without an end-of-sequence token", build("no-eos"), "eos_token", no_eos),
    Case(
        "a tokenizer with more tokens than the model",
        build("small"),
        "row 0: the tokenizer gives the token id",
        larger_tokenizer,
    ),
    Case("weights that are not numbers", build("nan"), "not finite", not_a_number),
    Case(
        "an attention backend that is not there",
        build("model", "--attention", "flush"),
        "attention",
    ),
    Case(
        "a policy with another tokenizer",
        "tdpo fit --plugin tdpo2 --model other",
        "its tokenizer is not the one the cache was built with .*'<more>'",
        other_tokenizer,
    ),
    Case(
        "a policy with more logits than the reference",
        "tdpo fit --plugin tdpo2 --model padded",
        "logits where the cache's reference has",
        padded,
    ),
    Case(
        "a policy's folder without a model",
        "tdpo fit --plugin tdpo2 --model empty",
        "--model empty",
        no_config,
    ),
)
