"""One of the processes that ``--num-processes`` starts: ``python -m tdpo.core.training.worker FOLDER``.

It reads the configuration from the folder and leaves there its result, or what went wrong.
"""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.file import CONFIG_FILE, fit_config
from ..errors import TdpoError
from ..fit import run_fit
from ..launched import threads_each
from .launch import ERROR_FILE, LEFT, RESULT_FILE

_LOOK_SECONDS = 0.5

# What another process has still to say when one has failed.
_LAST_WORDS_SECONDS = 5.0


def main() -> None:
    """Take part in the fit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_leave_with_others, args=(folder, rank), daemon=True).start()
    try:
        _share_cores()
        result = run_fit(fit_config({}, folder / CONFIG_FILE), quiet="--quiet" in sys.argv)
        if rank == 0:
            values = {**asdict(result), "output": str(result.output)}
            (folder / RESULT_FILE).write_text(json.dumps(values), encoding="utf-8")
        _part()
    except BaseException as error:
        _leave(folder, rank, error)
        sys.exit(LEFT)


def _share_cores() -> None:
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        threads = threads_each(int(os.environ["LOCAL_WORLD_SIZE"]))
        torch.set_num_threads(threads)
        # accelerate would set it to one, and say so.
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _part() -> None:
    """Wait for the others, and end the process group."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _leave(folder: Path, rank: int, error: BaseException) -> None:
    """Write down what went wrong; in full where it is no one's mistake but ours."""
    known = isinstance(error, TdpoError | KeyboardInterrupt)
    said: dict[str, Any] = {
        "rank": rank,
        "time": time.time(),
        "kind": type(error).__name__ if known else "",
        "message": str(error) if known else traceback.format_exc(),
        "signal": getattr(error, "signal", None),
    }
    path = folder / ERROR_FILE.format(rank=rank)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(said), encoding="utf-8")
    unfinished.rename(path)


def _leave_with_others(folder: Path, rank: int) -> None:
    """End this process soon after another has failed, or what started it is gone.

    It may be waiting for the other in the middle of a collective operation, where no signal reaches it.
    """
    starter, own = os.getppid(), ERROR_FILE.format(rank=rank)
    while os.getppid() == starter:
        if any(path.name != own for path in folder.glob(ERROR_FILE.format(rank="*"))):
            time.sleep(_LAST_WORDS_SECONDS)
            break
        time.sleep(_LOOK_SECONDS)
    os._exit(LEFT)


if __name__ == "__main__":
    main()
