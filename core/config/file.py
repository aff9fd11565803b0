"""The ``tdpo.yaml`` that may hold options, and how it comes together with what was given."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..options import construct, nearest, required_fields
from .build import BuildConfig
from .fit import FitConfig

T = TypeVar("T")

CONFIG_FILE = "tdpo.yaml"
SECTIONS = ("build", "fit", "training")


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
        content["build"] = _plain(asdict(build))
    if fit is not None:
        values = _plain(asdict(fit))
        content["training"] = values.pop("training")
        content["fit"] = values
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """One of several possible names as it was given, not as a list."""
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in values.items()
    }
