"""The options of the two stages, and the ``tdpo.yaml`` that may hold them.

Importing this module imports no torch: the command line builds ``--help`` from it.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .options import construct, nearest, option, required_fields

T = TypeVar("T")

CONFIG_FILE = "tdpo.yaml"
SECTIONS = ("build", "fit", "training")


@dataclass(frozen=True)
class BuildConfig:
    """Options of ``tdpo cache build`` and ``tdpo.build_cache``."""

    ref: str = option(MISSING, "reference model: a folder or a hub name", metavar="MODEL")
    dataset: list[str] = option(
        MISSING,
        "preference data: a .jsonl/.json/.csv/.parquet file, a folder, a glob or a hub name; may be repeated "
        "for several files",
        metavar="D",
    )
    out: str = option("tdpo-cache", "folder of the cache, or a URL such as s3://bucket/cache", metavar="DIR")
    split: str = option("train", "split of the data set")
    subset: str | None = option(None, "configuration of a hub data set")
    data_revision: str | None = option(None, "revision of a hub data set")
    column_map: dict[str, str] = option(
        {}, "columns under other names: prompt=question", metavar="NAME=COLUMN"
    )
    limit: int | None = option(None, "use only the first rows", gt=0)
    shuffle_seed: int | None = option(
        None, "read the rows in a random order; with --limit: a random part of them", ge=0
    )
    streaming: bool = option(False, "read data larger than the disk row by row, with no copy of it")
    chat_template: str | None = option(
        None, "file with a Jinja chat template, in place of the tokenizer's", metavar="FILE"
    )
    template_date: str | None = option(
        None, "day that a chat template takes for today, where it writes the date", metavar="YYYY-MM-DD"
    )
    max_length: int | None = option(
        None, "most tokens of prompt and completion; the reference's own limit when not given", gt=1
    )
    truncation: str = option(
        "drop", "what to do with a longer row", choices=("drop", "error", "keep_start", "keep_end")
    )
    truncate: str = option(
        "prompt", "which part keep_start and keep_end cut", choices=("prompt", "completion")
    )
    max_skipped: float = option(0.05, "largest share of rows that may be unusable", ge=0, le=1)
    distribution: str = option(
        "sparse",
        "what is cached of the reference's distributions: nothing, a sample, its hidden states and output "
        "head (all of it, rebuilt in training), every log-prob (small vocabularies)",
        choices=("none", "sparse", "exact", "full"),
    )
    head: int | None = option(
        None, "k: likeliest reference tokens cached per position; 8 when not given, 0 if exact", ge=0
    )
    tail: int | None = option(
        None, "m: tokens drawn from the rest of the distribution; 8 when not given, 0 if exact", ge=0
    )
    head_mass: float = option(
        0.99, "a position's head ends early once it holds this much probability; 1: always k", gt=0, le=1
    )
    tail_mass: float = option(
        0.3, "where less is left outside the head, fewer are drawn, in proportion; 0: always m", ge=0, le=1
    )
    seed: int = option(0, "seed of the draws", ge=0)
    revision: str | None = option(None, "revision of a reference on the hub")
    ref_dtype: str = option(
        "auto", "precision the reference runs in", choices=("auto", "float32", "bfloat16", "float16")
    )
    ref_quantization: str | None = option(
        None, "load the reference in fewer bits, with bitsandbytes", choices=("4bit", "8bit")
    )
    ref_adapter: str | None = option(
        None, "adapter on top of the reference, with peft: a folder or a hub name", metavar="ADAPTER"
    )
    device_map: str | None = option(
        None, "auto: spread the reference over all GPUs, the CPU and the disk", choices=("auto",)
    )
    hidden_dtype: str = option(
        "auto",
        "precision of the hidden states of --distribution exact; auto: what loses nothing of the reference's",
        choices=("auto", "bfloat16", "float32"),
    )
    attention: str | None = option(None, "attention backend: sdpa, eager, flash_attention_2, ...")
    batch_tokens: int | None = option(
        None, "tokens scored at a time; chosen for the device and halved when memory runs out", gt=0
    )
    prompt_sharing: str = option(
        "auto",
        "score the prompt of a pair once for both completions: where the model can, always, never",
        choices=("auto", "on", "off"),
    )
    shard_rows: int | None = option(
        None,
        "source rows of one shard, the unit that a killed build resumes at; 1024 when not given, fewer where "
        "the reference's distributions are cached whole",
        gt=0,
    )
    part: str | None = option(
        None,
        "build only this part of the shards, such as 2/5; tdpo cache merge joins the parts",
        metavar="I/N",
    )
    num_processes: int = option(1, "processes that share the work on this machine, one a GPU", gt=0)
    overwrite: bool = option(False, "replace a cache that was built from another request")


@dataclass(frozen=True)
class AddConfig:
    """Options of ``tdpo cache add`` and ``tdpo.add_statistics``."""

    name: str = option(MISSING, "name of the scores, by which fit finds them", metavar="NAME")
    cache: str = option("tdpo-cache", "folder of the cache, or a URL", metavar="DIR")
    positive: str | None = option(
        None, "contrast: model trained towards what is preferred; with --negative", metavar="MODEL"
    )
    negative: str | None = option(
        None, "contrast: model trained towards what is rejected; with --positive", metavar="MODEL"
    )
    positive_prompt: str | None = option(
        None, "contrast: system prompt that asks for what is preferred; with --negative-prompt"
    )
    negative_prompt: str | None = option(
        None, "contrast: system prompt that asks for what is rejected; with --positive-prompt"
    )
    ref: str | None = option(
        None, "another reference; with prompts or a statistic, the model to use", metavar="MODEL"
    )
    head: int = option(0, "k: likeliest tokens per position of a larger or a second sample", ge=0)
    tail: int = option(0, "m: tokens drawn from the rest", ge=0)
    entropy: bool = option(False, "the entropies of another reference as well")
    statistic: str | None = option(None, "a statistic that a plugin provides", metavar="NAME")
    set: dict[str, Any] = option({}, "option of the statistic", metavar="NAME=VALUE")
    seed: int = option(0, "seed of the draws", ge=0)
    chat_template: str | None = option(
        None,
        "the Jinja template that the cache was built with, where it was not the tokenizer's own",
        metavar="FILE",
    )
    revision: str | None = option(None, "revision of a --ref on the hub")
    ref_dtype: str = option(
        "auto",
        "precision that other models than the cache's reference run in",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    ref_quantization: str | None = option(
        None, "load another model in 8 or 4 bits, with bitsandbytes", choices=("8bit", "4bit")
    )
    ref_adapter: str | None = option(None, "adapter on top of --ref, with peft", metavar="ADAPTER")
    device_map: str | None = option(
        None, "auto: spread a model over what GPUs and memory there are", choices=("auto",)
    )
    attention: str | None = option(None, "attention backend of other models than the cache's reference")
    batch_tokens: int | None = option(
        None, "tokens scored at a time; chosen for the device and halved when memory runs out", gt=0
    )
    overwrite: bool = option(False, "replace scores of that name that were made from another request")


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


def read_config(path: str | os.PathLike[str] | None) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file; empty ones when ``path`` is None.

    Raises:
        ConfigError: no such file, not YAML, or a section that does not exist.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if path is None:
        return sections
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give an existing file to --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "not UTF-8 text"
        raise ConfigError(f"{path}:{line} not valid YAML: {problem}") from error
    if content is None:
        return sections
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{path}: expected the sections {', '.join(SECTIONS)}, not {type(content).__name__}"
        )
    for name, values in content.items():
        if name not in SECTIONS:
            raise ConfigError(f"{path}: no section {name!r}{nearest(str(name), SECTIONS)}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{path}: section {name!r} must hold names with values, not {values!r}")
        sections[name] = {str(key): value for key, value in (values or {}).items()}
    return sections


def build_config(given: Mapping[str, Any], config: str | os.PathLike[str] | None = None) -> BuildConfig:
    """The build's options: ``given`` over the ``build`` section of ``config`` over the defaults.

    Raises:
        ConfigError: an unknown or unusable option.
    """
    return _layered(BuildConfig, given, read_config(config)["build"], config)


def fit_config(given: Mapping[str, Any], config: str | os.PathLike[str] | None = None) -> FitConfig:
    """The fit's options: ``given`` over ``config``'s ``fit`` and ``training`` sections over the defaults.

    ``set`` is merged name by name; its ``training.FIELD`` entries become TrainingArguments.

    Raises:
        ConfigError: an unknown or unusable option.
    """
    sections = read_config(config)
    in_file = dict(sections["fit"])
    if "training" in in_file:
        raise ConfigError(f"{config}: put training: beside fit:, not inside it")
    values = dict(given)
    for name, layered in (("set", in_file.pop("set", None) or {}), ("training", sections["training"])):
        values[name] = {**dict(layered), **dict(values.get(name) or {})}
    for name in [n for n in values["set"] if n.startswith("training.")]:
        values["training"][name.removeprefix("training.")] = values["set"].pop(name)
    return _layered(FitConfig, values, in_file, config)


def _layered(
    cls: type[T], given: Mapping[str, Any], in_file: Mapping[str, Any], config: str | os.PathLike[str] | None
) -> T:
    if in_file:
        # Checked on their own first, so that the message names the file where the mistake is.
        section = "build" if cls is BuildConfig else "fit"
        required = {field.name: given.get(field.name, "") for field in required_fields(cls)}
        construct(cls, {**required, **in_file}, where=f"{config}: {section}.")
    values = {**in_file, **given}
    for field in required_fields(cls):
        if field.name not in values:
            section = "build" if cls is BuildConfig else "fit"
            raise ConfigError(
                f"--{field.name} must be given, on the command line or as {section}.{field.name} "
                f"of {CONFIG_FILE}"
            )
    return construct(cls, values)


def as_yaml(build: BuildConfig | None = None, fit: FitConfig | None = None) -> str:
    """The resolved configuration in the form of ``tdpo.yaml``."""
    import yaml

    content: dict[str, Any] = {}
    if build is not None:
        # One of several possible names is written as it was given, not as a list.
        content["build"] = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for name, value in asdict(build).items()
        }
    if fit is not None:
        values = asdict(fit)
        content["training"] = values.pop("training")
        content["fit"] = values
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
