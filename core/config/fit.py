"""The options of training a policy."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..options import option


@dataclass(frozen=True)
class FitConfig:
    """Options of ``tdpo fit`` and ``tdpo.fit``."""

    plugin: str = option(MISSING, "objective to train with; see tdpo plugins list", metavar="NAME")
    cache: str = option("tdpo-cache", "cache to train from: a folder or a URL", metavar="DIR")
    model: str | None = option(
        None, "model the policy starts from; the cache's reference when not given", metavar="MODEL"
    )
    output: str | None = option(
        None, "folder of the trained policy; runs/PLUGIN when not given", metavar="DIR"
    )
    set: dict[str, Any] = option(
        {}, "hyperparameter of the objective, or training.FIELD of TrainingArguments", metavar="NAME=VALUE"
    )
    scores: str | None = option(
        None,
        "added scores to read, by name, with commas; those that the objective needs when not given",
        metavar="NAMES",
    )
    reference: str | None = option(
        None, "added scores whose reference or sample takes the place of the cache's own", metavar="NAME"
    )
    kl_estimator: str = option(
        "fitted",
        "estimator of the forward KL from the cached sample",
        choices=("fitted", "nonnegative", "log_ratio"),
    )
    learning_rate: float = option(1e-6, "peak learning rate", gt=0)
    schedule: str = option("linear", "learning-rate schedule, by its transformers name")
    warmup_steps: float = option(0, "optimiser steps of warm-up; below 1: share of all steps", ge=0)
    epochs: float = option(1.0, "passes over the cache", gt=0)
    max_steps: int | None = option(None, "optimiser steps; overrides --epochs", gt=0)
    batch_size: int = option(8, "pairs of a micro-batch", gt=0)
    gradient_accumulation: int = option(1, "micro-batches of an optimiser step", gt=0)
    optimizer: str = option("adamw_torch", "optimiser, by its transformers name")
    dtype: str = option("float32", "precision of the policy's parameters", choices=("float32", "bfloat16"))
    bf16: bool = option(False, "compute in bfloat16 (autocast)")
    gradient_checkpointing: bool = option(False, "recompute activations instead of keeping them")
    attention: str | None = option(None, "attention backend: sdpa, eager, flash_attention_2, ...")
    seed: int = option(0, "seed of data order and everything random", ge=0)
    eval_cache: str | None = option(
        None, "cache to evaluate on, before, while and after training", metavar="DIR"
    )
    eval_steps: int | None = option(
        None, "optimiser steps between evaluations; once an epoch when not given", gt=0
    )
    logging_steps: int = option(10, "optimiser steps between logged lines", gt=0)
    save_steps: int | None = option(
        None, "optimiser steps between checkpoints; once an epoch when not given", gt=0
    )
    resume: bool = option(False, "go on from the output folder's last checkpoint")
    overwrite: bool = option(False, "replace the run that the output folder holds")
    other_start: bool = option(
        False, "the policy is meant to start away from the reference: no agreement check"
    )
    training: dict[str, Any] = option({}, "any other field of transformers.TrainingArguments")

    @property
    def output_dir(self) -> str:
        """The folder of the run."""
        return self.output if self.output is not None else str(Path("runs") / self.plugin)
