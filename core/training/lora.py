"""Low-rank adapters: small layers beside frozen ones are all that is trained, through peft."""

import re
import warnings
from pathlib import Path
from typing import Any

from ..adapters import require
from ..config.fit import FitConfig
from ..errors import ConfigError, ModelError
from ..models import ModelSource
from ..randomness import keep_random_states

ALL_LINEAR = "all-linear"

# As many linear layers are named in a message.
_SHOWN = 12


def check_lora_options(config: FitConfig) -> None:
    """Refuse options about a LoRA where none is trained, and options that do not go together.

    Raises:
        ConfigError: names the option.
        ModelError: peft is not installed.
    """
    if config.lora is not None:
        require("peft", "peft", f"--lora {config.lora}")
        if config.quantization is not None and config.merge:
            raise ConfigError(
                f"--merge: a LoRA trained beside a model in {config.quantization} cannot be merged into it "
                "without rounding it; leave --merge out, and merge the saved adapter into the full model"
            )
        return
    if config.quantization is not None:
        raise ConfigError(
            f"--quantization {config.quantization}: a model in fewer bits cannot be trained itself; add "
            "--lora RANK to train a LoRA beside it"
        )
    for flag, given in (
        ("--lora-alpha", config.lora_alpha is not None),
        ("--lora-dropout", config.lora_dropout != 0),
        ("--lora-targets", config.lora_targets != ALL_LINEAR),
        ("--lora-head", config.lora_head),
        ("--merge", config.merge),
    ):
        if given:
            raise ConfigError(f"{flag} is about a LoRA, and none is trained: add --lora RANK")


def check_start(config: FitConfig, source: ModelSource) -> None:
    """Refuse a start that the saved adapter, on its base alone, would not lead back to.

    Raises:
        ModelError: the policy starts from an adapter that is merged into its base.
    """
    if config.lora is None or source.adapter is None:
        return
    start = f"the policy starts from {source.name} with the adapter {source.adapter.name} merged into it"
    if config.quantization is not None:
        raise ModelError(
            f"--quantization {config.quantization}: {start}, which takes the full model; save the merged "
            "model with peft's merge_and_unload, build the cache from that, and start there"
        )
    if not config.merge:
        raise ModelError(
            f"--lora {config.lora}: {start}, and a LoRA saved for that base would lose it; add --merge to "
            "save the whole model"
        )


def add_lora(model: Any, config: FitConfig, source: ModelSource) -> Any:
    """The model as a peft.PeftModel: the LoRA of ``config`` trains, in float32, and the rest is frozen.

    A new LoRA's second factor is zero, so that it computes what ``model`` does. Its first is random, from the
    seed of ``config``.

    Raises:
        ConfigError: its targets match nothing, or layers that a LoRA cannot be put beside.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    rank = config.lora or 0
    # A folder is named in full: the adapter is then found from wherever it is loaded.
    base = str(Path(source.name).resolve()) if source.local else source.name
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        revision=source.revision,
        r=rank,
        lora_alpha=2 * rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=target_modules(config, model),
    )
    with keep_random_states(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between peft and transformers, and a tied head
        torch.manual_seed(config.seed)
        try:
            adapted = get_peft_model(model, settings)
        except (ValueError, re.error) as error:
            raise ConfigError(_targets_message(config, model, error)) from error
    saved: Any = adapted.peft_config["default"]
    saved.base_model_name_or_path = base
    if isinstance(saved.target_modules, set):
        # Written in one order, whatever Python's hashes are.
        saved.target_modules = sorted(saved.target_modules)
    return adapted.train(model.training)


def target_modules(config: FitConfig, model: Any) -> str | list[str]:
    """What peft is told to put a LoRA beside: names of layers, or a regular expression of whole names.

    Raises:
        ConfigError: one of several names matches nothing, which peft would not say.
    """
    names = [name.strip() for name in config.lora_targets.split(",") if name.strip()]
    every = names == [ALL_LINEAR]
    if not every:
        _check_names(config, model, _plain(names))
    if not config.lora_head:
        return ALL_LINEAR if every else _plain(names) or config.lora_targets
    embedding = model.get_output_embeddings()
    head = next(name for name, module in model.named_modules() if module is embedding)
    if every:
        # peft's own word for all linear layers leaves the head out.
        return linear_layers(model)
    return [*plain, head] if (plain := _plain(names)) else f"(?:{config.lora_targets})|{re.escape(head)}"


def _plain(names: list[str]) -> list[str]:
    """The names, where all are names and none a regular expression."""
    return names if all(re.fullmatch(r"[\w.-]+", name) for name in names) else []


def linear_layers(model: Any) -> list[str]:
    """The names of the model's linear layers, its output head among them."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]


def _check_names(config: FitConfig, model: Any, names: list[str]) -> None:
    there = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(one == name or one.endswith(f".{name}") for one in there):
            raise ConfigError(
                f"--lora-targets {config.lora_targets}: {name} matches no layer; {_there(model)}"
            )


def _targets_message(config: FitConfig, model: Any, error: Exception) -> str:
    said = " ".join(str(error).split()).partition(". ")[0]
    what = "matches no layer" if "not found in the base model" in said else f"cannot be used ({said})"
    return f"--lora-targets {config.lora_targets}: {what}; {_there(model)}"


def _there(model: Any) -> str:
    kinds = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in linear_layers(model)})
    return "the linear layers are " + ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")


def has_lora(model: Any) -> bool:
    """Whether a model is what :func:`add_lora` returns."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def load_adapter(model: Any, folder: Path) -> None:
    """Put a checkpoint's LoRA into a model that has one of its shape."""
    model.load_adapter(str(folder), "default", is_trainable=True)


def trained_state(model: Any, state: dict[str, Any] | None) -> dict[str, Any]:
    """What of a model with a LoRA is saved: what is trained, and not the base weights of an adapted head."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return trained if state is None else {name: state[name] for name in trained}
