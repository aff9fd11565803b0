"""The options of training a policy."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..options import option


@dataclass(frozen=True)
class FitConfig:
    """Options of ``tdpo fit`` and ``tdpo.fit``."""

    plugin: list[str] = option(
        MISSING,
        "objective to train with, see tdpo plugins list; may be repeated, with weights, for a sum",
        metavar="NAME[=WEIGHT]",
    )
    weighting: list[str] = option(
        [], "what multiplies the objective's margin, tokens or loss; may be repeated", metavar="NAME"
    )
    cache: str = option("tdpo-cache", "cache to train from: a folder or a URL", metavar="DIR")
    model: str | None = option(
        None, "model the policy starts from; the cache's reference when not given", metavar="MODEL"
    )
    output: str | None = option(
        None, "folder of the trained policy; runs/PLUGIN when not given", metavar="DIR"
    )
    set: dict[str, Any] = option(
        {},
        "option of the objective or a weighting, NAME.OPTION to say of which; or training.FIELD of "
        "TrainingArguments",
        metavar="OPTION=VALUE",
    )
    scores: str | None = option(
        None,
        "added scores to read, by name, with commas; those that the objective needs when not given",
        metavar="NAMES",
    )
    reference: str | None = option(
        None, "added scores whose reference or sample takes the place of the cache's own", metavar="NAME"
    )
    swap: bool = option(False, "train towards what was rejected: the sides of every pair exchanged")
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
    batch_size: int = option(8, "pairs that a process takes at a time", gt=0)
    batch_tokens: int | None = option(
        None, "tokens of a forward pass at most, padding included: more passes for the pairs of a batch", gt=0
    )
    gradient_accumulation: int = option(1, "batches that a process takes for an optimiser step", gt=0)
    prompt_sharing: str = option(
        "auto",
        "score the prompt of a pair once for both completions: where the model can, always, never",
        choices=("auto", "on", "off"),
    )
    packing: str = option(
        "auto",
        "several pairs in a row: with FlexAttention on CUDA, always, never",
        choices=("auto", "on", "off"),
    )
    num_processes: int = option(
        1, "processes on this machine, through torchrun, each with a GPU of its own where there are any", gt=0
    )
    optimizer: str = option("adamw_torch", "optimiser, by its transformers name")
    dtype: str = option("float32", "precision of the policy's parameters", choices=("float32", "bfloat16"))
    bf16: bool = option(False, "compute in bfloat16 (autocast)")
    gradient_checkpointing: bool = option(False, "recompute activations instead of keeping them")
    lora: int | None = option(None, "train a LoRA of this rank beside the frozen model", gt=0, metavar="RANK")
    lora_alpha: int | None = option(
        None, "scale of the LoRA: its output times ALPHA / RANK; twice the rank when not given", gt=0
    )
    lora_dropout: float = option(0.0, "dropout of the LoRA's input", ge=0, lt=1)
    lora_targets: str = option(
        "all-linear",
        "layers with a LoRA: all-linear (but the head), names with commas, or a regular expression",
        metavar="NAMES",
    )
    lora_head: bool = option(False, "a LoRA on the output head too")
    merge: bool = option(False, "save the model with its LoRA merged into it, not the LoRA alone")
    quantization: str | None = option(
        None, "bits of the frozen model that a LoRA trains beside", choices=("4bit", "8bit")
    )
    dropout: bool = option(False, "keep the model's dropout while training")
    attention: str | None = option(None, "attention backend: sdpa, eager, flash_attention_2, ...")
    seed: int = option(0, "seed of data order and everything random", ge=0)
    eval_cache: list[str] = option(
        [], "cache to evaluate on, before, while and after training; may be repeated", metavar="[NAME=]DIR"
    )
    eval_steps: int | None = option(
        None, "optimiser steps between evaluations; once an epoch when not given", gt=0
    )
    best: str | None = option(
        None,
        "keep the checkpoint that is best by this figure of the evaluations, such as eval_loss",
        metavar="METRIC",
    )
    best_mode: str = option(
        "auto", "whether a larger value of --best is the better one", choices=("auto", "max", "min")
    )
    early_stopping: int | None = option(
        None, "stop after so many evaluations in a row without improvement of --best", gt=0
    )
    early_stopping_threshold: float = option(
        0.0, "change of --best that must be exceeded to count as an improvement", ge=0
    )
    samples: int = option(
        0, "prompts of the first --eval-cache that the policy completes at each evaluation", ge=0
    )
    sample_tokens: int = option(128, "tokens of such a completion at most", gt=0)
    sample_temperature: float = option(
        0.0, "temperature of these completions; 0 takes the likeliest token", ge=0
    )
    report_to: str = option(
        "none", "trackers to report to: tensorboard, wandb, trackio, with commas", metavar="NAMES"
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
        return self.output if self.output is not None else str(Path("runs") / self.objective_name)

    @property
    def objective_name(self) -> str:
        """What is trained with, in a word: ``tdpo2``, or ``tdpo2+sft`` and ``dpo-mallows`` of several."""
        plugins = "+".join(plugin.partition("=")[0] for plugin in self.plugin)
        return "-".join([plugins, *self.weighting])

    @property
    def objective_flags(self) -> str:
        """The same as it is typed, for messages."""
        flags = [f"--plugin {plugin}" for plugin in self.plugin]
        return " ".join([*flags, *(f"--weighting {name}" for name in self.weighting)])
