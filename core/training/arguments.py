"""transformers.TrainingArguments of a fit."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from ..config.fit import FitConfig
from ..errors import ConfigError
from ..options import coerce, nearest, scalar_type
from .evaluation import evaluation_arguments
from .sharding import as_flag


@dataclass
class FitArguments(TrainingArguments):
    """transformers' arguments, and what trackers are told besides: they log all fields."""

    tdpo: dict[str, Any] = field(default_factory=dict)


def training_arguments(config: FitConfig, evaluate: bool) -> Any:
    """transformers.TrainingArguments of ``config``; its ``training`` fields win over ours.

    Raises:
        ConfigError: an unknown field, or a value that transformers refuses.
    """
    known = {field.name for field in fields(TrainingArguments) if field.init}
    annotations = get_type_hints(TrainingArguments)
    given = {}
    for name, value in config.training.items():
        if name not in known:
            raise ConfigError(f"training.{name} is not a field of TrainingArguments{_close(name, known)}")
        # Values from --set are text, and YAML takes 1e-5 for text too.
        plain = isinstance(value, str) and scalar_type(annotations[name])[0] in (int, float, bool)
        given[name] = coerce(value, annotations[name], f"training.{name}") if plain else value
    if "fsdp" in given:
        given["fsdp"] = as_flag(given["fsdp"])
    for name, value, words in (
        ("schedule", config.schedule, SchedulerType),
        ("optimizer", config.optimizer, OptimizerNames),
    ):
        known = {word.value for word in words}
        if value not in known:
            raise ConfigError(f"{name}={value!r} is none that transformers has{nearest(value, known)}")
    values: dict[str, Any] = {
        "output_dir": config.output_dir,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "optim": config.optimizer,
        "bf16": config.bf16,
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        # It would hide such losses from the log and wait for every micro-batch; the guard ends the run.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if config.save_steps else "epoch",
        "save_steps": config.save_steps or 500,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "report_to": "none",
        "run_name": Path(config.output_dir).name,
        "project": "tdpo",
        "label_names": [],
    }
    if evaluate:
        values |= evaluation_arguments(config)
    try:
        arguments = FitArguments(**{**values, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training options: {' '.join(str(error).split())}") from error
    if arguments.n_gpu > 1:
        # One process trains on one GPU: DataParallel would cut a batch of flat rows in the wrong places.
        arguments._n_gpu = 1
    return arguments


def _close(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""
