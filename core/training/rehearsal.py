"""What a fit is asked for, tried on a model without weights before any are loaded or anything is written."""

from typing import Any

import torch

from ..config.fit import FitConfig
from ..errors import ConfigError
from ..models import ModelSource, weightless
from .lora import add_lora


def rehearse(config: FitConfig, source: ModelSource, arguments: Any, *, sharded: bool = False) -> None:
    """Put the LoRA on, and choose the optimiser for, a stand-in of the policy on torch's meta device.

    Args:
        config: the fit's options.
        source: the policy's start.
        arguments: transformers.TrainingArguments of ``config``.
        sharded: whether the policy's parameters are to be spread over processes.

    Raises:
        ConfigError: a LoRA target that matches nothing; an optimiser that is not installed, or that does not
            take its arguments; a merge of what is spread over processes; activations to be moved off a GPU
            where there is none.
    """
    if (
        "offload" in (arguments.activation_checkpointing_kwargs or {})
        and not torch.accelerator.is_available()
    ):
        raise ConfigError(
            "training.activation_checkpointing_kwargs: offload keeps activations off the GPU, and there is "
            "none here; leave it out"
        )
    if config.merge and sharded:
        raise ConfigError(
            "--merge: a model that FSDP or DeepSpeed spreads over processes is not merged; leave it out, and "
            "merge the saved adapter with peft's merge_and_unload"
        )
    model = weightless(source)
    if config.lora is not None:
        model = add_lora(model, config, source)
    check_optimizer(arguments, model)


def check_optimizer(arguments: Any, model: Any) -> None:
    """Refuse an optimiser that transformers cannot make here.

    Raises:
        ConfigError: its package is not installed, or it does not take its arguments.
    """
    from transformers import Trainer

    settings = arguments.optim_args or ""
    for setting in filter(None, settings.split(",")):
        if "=" not in setting:
            raise ConfigError(f"training.optim_args={settings}: {setting!r} is no NAME=VALUE")
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        name = getattr(arguments.optim, "value", arguments.optim)
        raise ConfigError(f"--optimizer {name}: {' '.join(str(error).split())}") from error
