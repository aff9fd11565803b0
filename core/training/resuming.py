"""What a resumed run needs beside what Trainer keeps itself, to go on as if it had not stopped."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..runs.checkpoints import PROCESS_FILE
from .metrics import Means


def save_process(folder: str, rank: int, processes: int, means: Means) -> None:
    """Write this process's file of a checkpoint: how many there are, and the figures not yet logged."""
    content = {"processes": processes, "figures": means.state()}
    _file(folder, rank).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_process(folder: str, rank: int, processes: int, means: Means) -> None:
    """Read what :func:`save_process` wrote; figures of another number of processes are left to start over."""
    if (path := _file(folder, rank)).is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["processes"] == processes:
            means.restore(content["figures"])


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / PROCESS_FILE.format(rank=rank)


class StepsAsAsked(TrainerCallback):
    """Lets a resumed run log, save and evaluate as often as it is asked to, not as it was asked before."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer has just read the state, with the old numbers of steps, from the checkpoint."""
        state.compute_steps(args, state.max_steps)
