"""The folder of a run: what may be put where, and what a cut-off run left to go on from."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.file import CONFIG_FILE, as_yaml, read_config
from ..config.fit import FitConfig
from ..errors import ConfigError
from .checkpoints import last_checkpoint, remove_later
from .record import check_record, write_record

# Options that may change between a run and its resumption, because what is trained stays the same.
_MAY_CHANGE = {
    "resume", "overwrite", "output", "logging_steps", "save_steps", "merge", "report_to", "samples",
    "sample_tokens", "sample_temperature",
    # The same numbers computed in other pieces.
    "gradient_checkpointing", "batch_tokens", "prompt_sharing", "packing", "attention",
    # Compared by their product.
    "batch_size", "gradient_accumulation", "num_processes",
    # Compared by what they name, not by their names.
    "plugin", "set", "cache", "scores", "reference", "model", "eval_cache",
}  # fmt: skip
_TRAINING_MAY_CHANGE = {
    "per_device_train_batch_size", "gradient_accumulation_steps", "activation_checkpointing_kwargs",
    "logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "report_to", "run_name",
    "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "torch_empty_cache_steps",
}  # fmt: skip


def is_first_process() -> bool:
    """Whether this is the only process of the run, or the launcher's first.

    Raises:
        ConfigError: the environment's RANK is no number.
    """
    rank = os.environ.get("RANK", "0")
    if not rank.isdigit():
        raise ConfigError(
            f"the environment says RANK={rank}: start with torchrun or accelerate launch, or unset it"
        )
    return int(rank) == 0


def prepare_output(folder: Path, config: FitConfig, record: Mapping[str, Any]) -> list[Path]:
    """Make the run's folder and write into it the resolved configuration and what the run is made of.

    Args:
        folder: the run's.
        config: its options.
        record: :func:`~tdpo.core.runs.record.run_record` of it.

    Returns:
        The checkpoints of a run to be resumed that were cut short while they were written; they are gone.

    Raises:
        ConfigError: the folder holds another run, or something that is no run at all.
    """
    try:
        _clear_or_refuse(folder, config, record)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(as_yaml(fit=config), encoding="utf-8")
        write_record(folder, record)
        return remove_later(folder, last_checkpoint(folder))
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def _clear_or_refuse(folder: Path, config: FitConfig, record: Mapping[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; choose a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    is_run = (folder / CONFIG_FILE).is_file()
    if config.resume and is_run:
        if str(config.training.get("save_only_model")).lower() in ("true", "1", "yes", "on"):
            raise ConfigError(
                "--resume: with training.save_only_model the checkpoints hold the model alone, not the "
                "optimiser; start a new run, from one of them with --model CHECKPOINT --other-start"
            )
        _check_same_options(folder, config)
        check_record(folder, record)
    elif config.overwrite and is_run:
        shutil.rmtree(folder)
    elif is_run:
        raise ConfigError(
            f"--output {folder}: holds another run; choose another folder, go on with it by --resume, or "
            "replace it by --overwrite"
        )
    else:
        raise ConfigError(f"--output {folder}: is not empty and holds no run of tdpo; choose another folder")


def _check_same_options(folder: Path, config: FitConfig) -> None:
    sections = read_config(folder / CONFIG_FILE)
    before, now = sections["fit"], asdict(config)
    trained, training = sections["training"], now.pop("training")
    compared = [(name, before[name], now[name]) for name in now if name in before and name not in _MAY_CHANGE]
    compared += [
        (f"training.{name}", trained.get(name), training.get(name))
        for name in sorted((trained.keys() | training.keys()) - _TRAINING_MAY_CHANGE)
    ]
    for name, then, today in compared:
        if then != today:
            raise ConfigError(
                f"--resume: {folder} was started with {name}={then!r}, now it is {today!r}; resume "
                "with the same options, or start a new run"
            )
