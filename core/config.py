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
    dataset: str = option(
        MISSING,
        "preference data: a .jsonl/.json/.csv/.parquet file, a folder, a glob or a hub name",
        metavar="D",
    )
    out: str = option("tdpo-cache", "folder of the cache", metavar="DIR")
    split: str = option("train", "split of the data set")
    subset: str | None = option(None, "configuration of a hub data set")
    data_revision: str | None = option(None, "revision of a hub data set")
    column_map: dict[str, str] = option(
        {}, "columns under other names: prompt=question", metavar="NAME=COLUMN"
    )
    limit: int | None = option(None, "use only the first rows", gt=0)
    chat_template: str | None = option(
        None, "file with a Jinja chat template, in place of the tokenizer's", metavar="FILE"
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
    head: int = option(8, "k: likeliest reference tokens cached per position; 0 with --tail 0: none", ge=0)
    tail: int = option(8, "m: tokens drawn from the rest of the reference's distribution", ge=0)
    seed: int = option(0, "seed of the draws", ge=0)
    revision: str | None = option(None, "revision of a reference on the hub")
    ref_dtype: str = option(
        "auto", "precision the reference runs in", choices=("auto", "float32", "bfloat16", "float16")
    )
    attention: str | None = option(None, "attention backend: sdpa, eager, flash_attention_2, ...")
    batch_tokens: int | None = option(
        None, "tokens scored at a time; chosen for the device and halved when memory runs out", gt=0
    )
    shard_rows: int = option(1024, "source rows of one shard, the unit that a killed build resumes at", gt=0)
    overwrite: bool = option(False, "replace a cache that was built from another request")


@dataclass(frozen=True)
class FitConfig:
    """Options of ``tdpo fit`` and ``tdpo.fit``."""

    plugin: str = option(MISSING, "objective to train with; see tdpo plugins list", metavar="NAME")
    cache: str = option("tdpo-cache", "cache to train from", metavar="DIR")
    model: str | None = option(
        None, "model the policy starts from; the cache's reference when not given", metavar="MODEL"
    )
    output: str | None = option(
        None, "folder of the trained policy; runs/PLUGIN when not given", metavar="DIR"
    )
    set: dict[str, Any] = option(
        {}, "hyperparameter of the objective, or training.FIELD of TrainingArguments", metavar="NAME=VALUE"
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
        content["build"] = asdict(build)
    if fit is not None:
        values = asdict(fit)
        content["training"] = values.pop("training")
        content["fit"] = values
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
