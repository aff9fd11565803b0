"""Command-line options made from the option fields of a dataclass."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from ..config.file import CONFIG_FILE
from ..errors import ConfigError
from ..options import field_types, scalar_type


def options_of(cls: Any, *, leave_out: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """A decorator that adds a flag for every option field of the dataclass ``cls``.

    A flag that is not given stays None: :func:`given` drops it, so that ``tdpo.yaml`` and the defaults apply.
    """

    def decorate(function: Any) -> Any:
        annotations = field_types(cls)
        for field in reversed(fields(cls)):
            if field.name not in leave_out:
                function = _option(field, annotations[field.name])(function)
        return function

    return decorate


def _option(field: Field[Any], annotation: Any) -> Any:
    kind, _ = scalar_type(annotation)
    flag = "--" + field.name.replace("_", "-")
    help_text = field.metadata["help"] + _limits(field)
    metavar = field.metadata.get("metavar")
    if kind is bool:
        names = (
            f"{flag}/--no-{flag[2:]}" if field.name not in ("resume", "overwrite", "other_start") else flag
        )
        return click.option(names, field.name, is_flag=True, default=None, help=help_text)
    if getattr(kind, "__origin__", kind) is list:
        return click.option(
            flag,
            field.name,
            multiple=True,
            metavar=metavar or "TEXT",
            help=help_text,
            callback=lambda _context, _option, values: list(values) or None,
        )
    if getattr(kind, "__origin__", kind) is dict:
        return click.option(flag, field.name, multiple=True, metavar=metavar or "NAME=VALUE", help=help_text)
    choices = field.metadata.get("choices")
    shown = metavar or ("|".join(choices) if choices else {int: "N", float: "X"}.get(kind, "TEXT"))
    return click.option(flag, field.name, default=None, metavar=shown, help=help_text)


def _limits(field: Field[Any]) -> str:
    notes = []
    if field.default is not MISSING and field.default not in (None, False, ""):
        notes.append(f"default {field.default}")
    if field.metadata.get("range"):
        notes.append(str(field.metadata["range"]))
    return f" [{'; '.join(notes)}]" if notes else ""


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, ``NAME=VALUE`` ones as dictionaries.

    Raises:
        ConfigError: a ``NAME=VALUE`` without ``=``.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            if value:
                found[name] = dict(_name_and_value(f"--{name.replace('_', '-')}", item) for item in value)
        elif value is not None:
            found[name] = value
    return found


def _name_and_value(flag: str, item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not name:
        raise ConfigError(f"{flag} {item}: expected NAME=VALUE, such as beta=0.1")
    return name.strip(), value.strip()


config_option = click.option(
    "--config",
    metavar="FILE",
    default=None,
    help=f"file with further options [default ./{CONFIG_FILE} where there is one]",
)


def config_path(asked: str | None) -> str | None:
    """The configuration file: the one asked for, or ``tdpo.yaml`` in this folder where there is one."""
    return asked if asked is not None or not Path(CONFIG_FILE).is_file() else CONFIG_FILE
