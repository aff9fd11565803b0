"""The command that a set of options stands for, as it would be typed."""

import json
import shlex
from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import Any

from .build import AddConfig, BuildConfig
from .fit import FitConfig

# What a command is typed with that does not change what comes of it, or names where it went.
_OF_A_BUILD = ("out", "part", "num_processes", "overwrite")


def build_command(config: BuildConfig) -> str | None:
    """The ``tdpo cache build`` of these options, but for the cache's folder; None of data given in Python."""
    return None if config.dataset == ["in memory"] else command_line("tdpo cache build", config, _OF_A_BUILD)


def add_command(config: AddConfig) -> str:
    """The ``tdpo cache add`` of these options, but for the cache's folder."""
    return command_line("tdpo cache add", config, ("cache", "overwrite"))


def fit_command(config: FitConfig) -> str:
    """The ``tdpo fit`` of these options."""
    return command_line("tdpo fit", config, ("resume", "overwrite"))


def command_line(command: str, config: Any, leave_out: Collection[str] = ()) -> str:
    """What is typed to give ``config``: ``command``, and a flag for each option that is not its default.

    Args:
        command: its words, such as ``tdpo fit``.
        config: a dataclass of options (:func:`~tdpo.core.options.option`).
        leave_out: options to pass over.
    """
    words = command.split()
    settings: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in leave_out or value == default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if field.name == "training":
            # TrainingArguments have no flag of their own.
            settings += [word for pair in _pairs(value, "training.") for word in ("--set", pair)]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            values = (
                _pairs(value) if isinstance(value, dict) else value if isinstance(value, list) else [value]
            )
            words += [word for each in values for word in (flag, _text(each))]
    return shlex.join([*words, *settings])


def _pairs(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [f"{prefix}{name}={_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool | None) else str(value)
