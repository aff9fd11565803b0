"""How a run came to be: what its folder tells for it to be made again. Recorded, never compared."""

import datetime
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ...cache.manifest import Manifest, identity_hash
from ..composing import compose
from ..composition import Composition
from ..config.command import fit_command
from ..config.fit import FitConfig
from ..fit_request import FitRequest
from ..reading import AroundReader

_PACKAGES = ("tdpo", "torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes", "numpy")


def run_provenance(request: FitRequest, arguments: Any) -> dict[str, Any]:
    """Command, versions, hardware and the caches' own origins, as plain values.

    Args:
        request: what is trained.
        arguments: transformers.TrainingArguments of the run.
    """
    config, reader = request.config, request.reader
    return {
        "created": now(),
        "command": fit_command(config),
        "start": request.policy.name,
        "options": objective_options(config),
        "paper": request.objective.paper,
        "versions": versions(),
        "hardware": hardware(arguments),
        "cache": _origin(reader),
        "evaluation": {name: _origin(one) for name, one in request.evaluations.items()},
    }


def now() -> str:
    """This moment, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def hardware(arguments: Any) -> str:
    """What computes, in words."""
    if arguments.device.type == "cuda":
        return f"{arguments.world_size} x {torch.cuda.get_device_name(arguments.device)}"
    if arguments.device.type != "cpu":
        return f"{arguments.world_size} x {arguments.device.type}"
    each = f"{torch.get_num_threads()} of {os.cpu_count()} {platform.machine()} CPU threads"
    return each if arguments.world_size == 1 else f"{arguments.world_size} processes of {each}"


def objective_options(config: FitConfig) -> dict[str, Any]:
    """The options of objective and weightings that are not their defaults, by name; before preparation."""
    objective = compose(config.plugin, config.weighting, config.set)
    if not isinstance(objective, Composition):
        return _differing(objective)
    first, *others = [(part.name, part.objective) for part in objective.parts]
    found = _differing(first[1])
    for name, each in [*others, *objective.weightings]:
        found |= {f"{name}.{option}": value for option, value in _differing(each).items()}
    return found


def _differing(each: Any) -> dict[str, Any]:
    values = {}
    for field in fields(each):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if (value := getattr(each, field.name)) != default:
            values[field.name] = value
    return values


def versions() -> dict[str, str]:
    """Version of Python and of each package that figures may depend on, where it is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _origin(reader: Any) -> dict[str, Any]:
    """A cache's identity in short, its size, and the commands that make it and what was added to it.

    ``identity_sha256`` is of what is read, ``cache_sha256`` of the cache itself. They differ where scores
    that were added take the place of its own.
    """
    manifest: Manifest = _innermost(reader).manifest
    of_cache: Mapping[str, Any] = manifest.provenance
    plan = getattr(reader, "plan", None)
    added = {name: manifest.scores[name].provenance for name in sorted(plan.sets)} if plan is not None else {}
    return {
        "place": reader.location,
        "identity_sha256": identity_hash(reader.identity),
        "cache_sha256": identity_hash(manifest.identity),
        "rows": manifest.rows,
        "completion_tokens": manifest.completion_tokens,
        "command": of_cache.get("command"),
        "added": {name: one.get("command") for name, one in added.items()},
        **{name: of_cache.get(name) for name in ("reference", "dataset", "created", "versions")},
    }


def _innermost(reader: Any) -> Any:
    while isinstance(reader, AroundReader):
        reader = reader.base
    return reader
