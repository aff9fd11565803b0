"""The checkpoints of a run: which of them are whole, and which one a resumed run goes on from.

transformers.Trainer writes a checkpoint's state file last, but not in one piece, and processes write their
random states side by side. So nothing is taken for granted: a checkpoint counts when every file of it is
there and whole.
"""

import json
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from ..errors import ConfigError

STATE_FILE = "trainer_state.json"
# What tdpo itself keeps of each process, beside what Trainer does.
PROCESS_FILE = "process_{rank}.json"

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*")
_OPTIMISER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is its run's last: there is nothing left to train."""
    state = _read_json(checkpoint / STATE_FILE) or {}
    return _stopped_early(state) or bool(state["global_step"] >= state["max_steps"])


def _stopped_early(state: dict[str, Any]) -> bool:
    found = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not found:
        return False
    waited = found["attributes"]["early_stopping_patience_counter"]
    return bool(waited >= found["args"]["early_stopping_patience"])


def kept_checkpoint(checkpoint: Path) -> Path:
    """The checkpoint whose model a run keeps that ended with ``checkpoint``: its best where one was chosen.

    Raises:
        ConfigError: the best is gone.
    """
    step = (_read_json(checkpoint / STATE_FILE) or {}).get("best_global_step")
    return checkpoint if step is None else best_checkpoint(checkpoint.parent, step)


def best_checkpoint(folder: Path, step: int) -> Path:
    """The checkpoint of the step that was best.

    Raises:
        ConfigError: it is gone.
    """
    path = folder / f"checkpoint-{step}"
    if not path.is_dir():
        raise ConfigError(
            f"{path}: the best checkpoint so far is not there any more; put it back, or start again with "
            "--overwrite"
        )
    return path


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return next((path for path in reversed(checkpoints(folder)) if is_whole(path)), None)


def running_means(folder: str | os.PathLike[str]) -> dict[str, float]:
    """The means over the run so far that its objective read when the model was saved that it keeps.

    Name -> mean; empty where there are none, or no checkpoint is left.
    """
    last = last_checkpoint(folder)
    if last is None:
        return {}
    try:
        content = _read_json(kept_checkpoint(last) / PROCESS_FILE.format(rank=0)) or {}
    except ConfigError:
        return {}
    return {name: total / n for name, (total, n) in content.get("running", {}).items() if n}


def remove_later(folder: str | os.PathLike[str], checkpoint: Path | None) -> list[Path]:
    """Remove the checkpoints after ``checkpoint``, or all, that were cut short; returns what there was."""
    kept = checkpoint_step(checkpoint) if checkpoint is not None else -1
    later = [path for path in checkpoints(folder) if checkpoint_step(path) > kept]
    for path in later:
        shutil.rmtree(path)
    return later


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: nothing that resuming takes is missing or cut short."""
    processes = (_read_json(checkpoint / PROCESS_FILE.format(rank=0)) or {}).get("processes", 0)
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    names += [PROCESS_FILE.format(rank=rank) for rank in range(processes)]
    return (
        processes > 0
        and all((checkpoint / name).is_file() for name in [*names, STATE_FILE])
        and all(any(any(checkpoint.glob(one)) for one in kinds) for kinds in (_WEIGHTS, _OPTIMISER))
        and all(_is_whole_file(path) for path in checkpoint.rglob("*") if path.is_file())
    )


def holds_model(folder: Path) -> bool:
    """Whether a model lies in a folder, or a LoRA, in files that were written to their end."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    configs = [path for name in ("config.json", "adapter_config.json") if (path := folder / name).is_file()]
    return (
        bool(weights and configs)
        and all(map(_is_whole_file, [*weights, *configs]))
        and all(map(_is_whole_file, folder.glob("*.index.json")))
    )


def _is_whole_file(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return _is_whole_safetensors(path)
    if path.suffix == ".json":
        content = _read_json(path)
        # An index names the files that a model's weights are spread over.
        parts = content.get("weight_map", {}).values() if isinstance(content, dict) else ()
        return content is not None and all((path.parent / part).is_file() for part in set(parts))
    if path.suffix in (".pt", ".pth", ".bin"):
        # torch.save writes a ZIP archive, whose directory is at the end of the file.
        return zipfile.is_zipfile(path)
    return True


def _is_whole_safetensors(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        except (struct.error, ValueError):
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a run's folder, whole or not, in order of their steps."""
    paths = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"\d+", path.name[11:])]
    return sorted(paths, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
