"""What a run is made of, provably: written into its folder, and compared when the run is resumed."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from ...cache.manifest import identity_differences, plain_json
from ..errors import ConfigError
from ..models import ModelSource

if TYPE_CHECKING:
    from ..objective import Objective

RECORD_FILE = "run.json"

# Part of the record -> what it is called, and the options that choose it.
_PARTS = {
    "objective": ("another objective", "--plugin and --set"),
    "cache": ("another cache", "--cache, --scores and --reference"),
    "evaluation": ("other evaluation caches", "--eval-cache"),
    "policy": ("another model", "--model"),
}


def run_record(
    objective: "Objective",
    reader: Any,
    evaluation: Mapping[str, Any],
    policy: ModelSource,
    arguments: Any,
) -> dict[str, Any]:
    """What decides what a run computes, by content and not by name.

    Args:
        objective: with its hyperparameters.
        reader: the cache, with the scores that are read beside it.
        evaluation: name -> evaluation cache.
        policy: the model that it starts from.
        arguments: transformers.TrainingArguments of the run.
    """
    record = {
        "objective": _described(objective),
        "cache": _content(reader),
        "evaluation": {name: _content(one) for name, one in evaluation.items()},
        "policy": policy.identity(),
        "pairs_a_step": pairs_a_step(arguments),
    }
    return plain_json(record)


def _described(value: Any) -> Any:
    """An objective, or what it is composed of: its class and its options."""
    if is_dataclass(value):
        options = {field.name: _described(getattr(value, field.name)) for field in fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **options}
    return [_described(one) for one in value] if isinstance(value, tuple | list) else value


def pairs_a_step(arguments: Any) -> int:
    """Pairs of an optimiser step, over all processes."""
    pairs: int = (
        arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    return pairs


def _content(reader: Any) -> dict[str, Any]:
    """A cache's identity, and that of the scores that are read with it."""
    plan = getattr(reader, "plan", None)
    names = sorted(plan.sets) if plan is not None else []
    return {"base": reader.identity, "scores": {n: reader.manifest.scores[n].identity for n in names}}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` into the folder of a run; one that is resumed keeps how it began."""
    before = read_record(folder).get("provenance")
    now = record.get("provenance", {})
    if before and now:
        again = {name: now[name] for name in ("created", "versions", "hardware") if name in now}
        resumed = [*before.get("resumed", []), again]
        record = {**record, "provenance": {**before, "finished": None, "resumed": resumed}}
    _write(folder, record)


def read_record(folder: Path) -> dict[str, Any]:
    """The record in the folder of a run; empty where there is none that can be read."""
    try:
        found = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def record_end(folder: Path, **figures: Any) -> None:
    """Enter into the record of a run that it has come to its end, and with what."""
    record = read_record(folder)
    _write(folder, {**record, "provenance": {**record.get("provenance", {}), "finished": figures}})


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was made of something else.

    Raises:
        ConfigError: says what is different, and in what.
    """
    before = read_record(folder)
    if not before:
        raise ConfigError(
            f"--resume: {folder} has no readable {RECORD_FILE}, so nothing says what it was trained from; "
            "start a new run"
        )
    for part, (what, options) in _PARTS.items():
        words = ("the run has", "you give")
        if differences := identity_differences(before.get(part) or {}, record[part], words):
            more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
            raise ConfigError(
                f"--resume: {folder} was started with {what} ({shorten(differences[0], 240)}{more}); give "
                f"the same {options}, or start a new run"
            )
    if before.get("pairs_a_step") != record["pairs_a_step"]:
        raise ConfigError(
            f"--resume: {folder} was started with {before.get('pairs_a_step')} pairs an optimiser step, now "
            f"it is {record['pairs_a_step']}: --batch-size times --gradient-accumulation times the processes "
            "must stay what it was"
        )
