"""The folder of a run: what may be put where, and what a cut-off run left to go on from."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .config.file import CONFIG_FILE, as_yaml, read_config
from .config.fit import FitConfig
from .errors import ConfigError

STATE_FILE = "trainer_state.json"

# Options that may change between a run and its resumption: they do not change what is trained.
_MAY_CHANGE = {"resume", "overwrite", "output", "logging_steps", "save_steps"}


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


def prepare_output(folder: Path, config: FitConfig) -> None:
    """Make the run's folder and write the resolved configuration into it.

    Raises:
        ConfigError: the folder holds another run, or something that is no run at all.
    """
    try:
        _clear_or_refuse(folder, config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(as_yaml(fit=config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def _clear_or_refuse(folder: Path, config: FitConfig) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; choose a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    is_run = (folder / CONFIG_FILE).is_file()
    if config.resume and is_run:
        _check_same_run(folder, config)
    elif config.overwrite and is_run:
        shutil.rmtree(folder)
    elif is_run:
        raise ConfigError(
            f"--output {folder}: holds another run; choose another folder, go on with it by --resume, or "
            "replace it by --overwrite"
        )
    else:
        raise ConfigError(f"--output {folder}: is not empty and holds no run of tdpo; choose another folder")


def _check_same_run(folder: Path, config: FitConfig) -> None:
    sections = read_config(folder / CONFIG_FILE)
    before: dict[str, Any] = {**sections["fit"], "training": sections["training"]}
    now = asdict(config)
    for name, value in now.items():
        if name not in _MAY_CHANGE and name in before and before[name] != value:
            raise ConfigError(
                f"--resume: {folder} was started with {name}={before[name]!r}, now it is {value!r}; resume "
                "with the same options, or start a new run"
            )


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is its run's last: there is nothing left to train."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / STATE_FILE).is_file()
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
