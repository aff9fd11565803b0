"""What a resumed run needs beside what Trainer keeps itself, to go on as if it had not stopped."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..runs.checkpoints import PROCESS_FILE
from .metrics import Means
from .running import RunningMeans


def save_process(folder: str, rank: int, processes: int, means: Means, running: RunningMeans) -> None:
    """Write this process's file of a checkpoint: how many there are, the figures not yet logged, and the
    running means that the objective reads.
    """
    content = {"processes": processes, "figures": means.state(), "running": running.state()}
    _file(folder, rank).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_process(folder: str, rank: int, processes: int, means: Means, running: RunningMeans) -> None:
    """Read what :func:`save_process` wrote; figures of another number of processes are left to start over.

    Running means are those of all processes, in each one's file.
    """
    if (first := _file(folder, 0)).is_file():
        running.restore(_read(first)["running"])
    if (path := _file(folder, rank)).is_file() and (content := _read(path))["processes"] == processes:
        means.restore(content["figures"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / PROCESS_FILE.format(rank=rank)


class StepsAsAsked(TrainerCallback):
    """Lets a resumed run log, save and evaluate as often as it is asked to, not as it was asked before."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer has just read the state, with the old numbers of steps, from the checkpoint."""
        state.compute_steps(args, state.max_steps)
