"""Training with less memory."""

from .case import Case

FIT = "tdpo fit --plugin dpo --output run"


def quantised(world):
    world.new_model("wide", hidden_size=64)
    world.build("quantised", ref="wide", ref_quantization="4bit", limit=8)


def wide(world):
    world.new_model("wide", hidden_size=64)
    world.build("full", ref="wide", limit=8)


def adapted(world):
    import warnings

    from peft import LoraConfig, get_peft_model
    from support import make_model, make_tokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        model = get_peft_model(make_model(len(make_tokenizer())), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(world.folder / "lora")
    world.build("adapted", ref_adapter="lora", limit=8)


def orphan(world):
    adapted(world)
    world.edit(
        "lora/adapter_config.json", lambda document: document.update(base_model_name_or_path="elsewhere")
    )


CASES = (
    Case(
        "a LoRA target that matches nothing",
        f"{FIT} --lora 8 --lora-targets query,value",
        "matches no layer; the linear layers are .*q_proj",
        needs=("peft",),
    ),
    Case(
        "a LoRA target that is no linear layer",
        f"{FIT} --lora 8 --lora-targets norm",
        "--lora-targets norm: cannot be used .*; the linear layers are .*q_proj",
        needs=("peft",),
    ),
    Case("a rank of nothing", f"{FIT} --lora 0", "lora=0 is out of range"),
    Case("an option of a LoRA without one", f"{FIT} --lora-alpha 16", "add --lora RANK"),
    Case("a quantised policy without a LoRA", f"{FIT} --quantization 4bit", "add --lora RANK"),
    Case("an unknown quantisation", f"{FIT} --lora 8 --quantization 3bit", "not one of 4bit, 8bit"),
    Case(
        "a LoRA to be merged into a quantised model",
        f"{FIT} --lora 8 --quantization 4bit --merge",
        "leave --merge out",
        needs=("peft",),
    ),
    Case(
        "a quantised policy of a reference in full",
        f"{FIT} --cache full --lora 8 --quantization 4bit",
        "build the cache with --ref-quantization 4bit, or pass --other-start",
        wide,
        keeps=True,
        hide=((r"\d+\.\d+(e-?\d+)?", "N"),),
        needs=("peft", "bitsandbytes"),
    ),
    Case(
        "a policy in full of a quantised reference",
        f"{FIT} --cache quantised",
        "--lora RANK --quantization 4bit, or pass --other-start",
        quantised,
        needs=("bitsandbytes",),
    ),
    Case(
        "a LoRA on top of a merged one",
        f"{FIT} --cache adapted --lora 8",
        "add --merge to save the whole model",
        adapted,
        needs=("peft",),
    ),
    Case(
        "an adapter as the policy, and its base is gone",
        f"{FIT} --model lora",
        "--model lora: is an adapter; its base elsewhere: no such folder",
        orphan,
        hide=((r"\(.*\)", "(...)"),),
        needs=("peft",),
    ),
    Case(
        "an optimiser that is not installed",
        f"{FIT} --optimizer galore_adamw",
        "--optimizer galore_adamw: You need to install",
    ),
    Case(
        "arguments that the optimiser does not take",
        f"{FIT} --optimizer sgd --set training.optim_args=momentum",
        "'momentum' is no NAME=VALUE",
    ),
)
