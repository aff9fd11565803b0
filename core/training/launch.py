"""``--num-processes``: a fit by several processes of this machine.

torchrun's agent starts the processes, watches them and ends all when one ends. What they say reaches the
caller through files of a folder of their own (:mod:`.worker`), so that the exit code, the one error line and
Ctrl-C stay what a single process gives. Importing this imports no torch.
"""

import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from logging import CRITICAL, getLogger, root
from pathlib import Path
from typing import Any

from .. import errors
from ..config.file import CONFIG_FILE, as_yaml
from ..config.fit import FitConfig
from ..errors import ConfigError, TdpoError
from ..launched import Place

RESULT_FILE = "result.json"
ERROR_FILE = "error-{rank}.json"

# Exit code of a process that leaves because another has failed, or after it has said why.
LEFT = 2

_HINTS = {-signal.SIGKILL: " (as where memory does not suffice)"}

# Asked to end, the processes save a checkpoint first, which takes minutes where it is large.
_SAVING_SECONDS = 600


def as_launched(config: FitConfig) -> FitConfig:
    """``config`` with what a launcher says in the environment: how many processes it has started, and bf16.

    Raises:
        ConfigError: it and the option contradict each other, or it was asked for several and started one.
    """
    started, asked = Place.here().size, config.num_processes
    if started > 1 and asked not in (1, started):
        raise ConfigError(
            f"--num-processes {asked}: a launcher has started this as {started} processes; leave the option "
            "out, or start without the launcher"
        )
    if started == 1 and _asked_of_accelerate():
        raise ConfigError(
            "accelerate launch was asked for several processes, and this one is told of no other (on CPUs it "
            "starts one): use tdpo fit --num-processes N, or torchrun"
        )
    bf16 = config.bf16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    return replace(config, num_processes=max(started, asked), bf16=bf16)


def _asked_of_accelerate() -> bool:
    """Whether ``accelerate launch`` was asked for several processes but does not say which this one is."""
    return {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ


def is_launched(config: FitConfig) -> bool:
    """Whether this is one of the processes already, rather than what starts them."""
    return config.num_processes == Place.here().size


def launch(config: FitConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Run the fit of ``config`` in ``config.num_processes`` new processes of this machine.

    Returns:
        The fields of the first process's :class:`~.result.FitResult`.

    Raises:
        ConfigError: more processes than GPUs.
        TdpoError: what went wrong in one of the processes; the first such error.
        RuntimeError: one failed otherwise; holds its traceback.
        StoppedBySignal: Ctrl-C or SIGTERM; the processes have saved what a single one saves.
        KeyboardInterrupt: Ctrl-C before there was anything to save.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _check_gpus(config)
    with tempfile.TemporaryDirectory(prefix="tdpo-fit-") as name:
        folder = Path(name)
        (folder / CONFIG_FILE).write_text(as_yaml(fit=config), encoding="utf-8")
        arguments = ["-m", "tdpo.core.training.worker", name, *(["--quiet"] if quiet else [])]
        try:
            with _own_handlers():
                elastic_launch(_settings(config.num_processes, folder), sys.executable)(*arguments)
        except ChildFailedError as failed:
            raise _first_error(folder, failed.failures) from None
        except SignalException as stopped:
            if (error := _mistake(folder)) is not None:
                raise error from None
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + stopped.sigval)
        result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return {**result, "output": Path(result["output"])}


def _check_gpus(config: FitConfig) -> None:
    import torch

    from .sharding import takes_gpus

    if not takes_gpus(config):
        return
    gpus = torch.accelerator.device_count()
    if config.num_processes > gpus:
        raise ConfigError(
            f"--num-processes {config.num_processes}: this machine has {gpus} GPU{'s' * (gpus != 1)}; each "
            "process takes one: give at most as many"
        )


def _settings(processes: int, folder: Path) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        # The first process alone speaks.
        logs_specs=DefaultLogsSpecs(str(folder), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        shutdown_timeout=_SAVING_SECONDS,
    )


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Inside the block the agent has its way with signals and environment, and keeps its log to itself."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    handlers = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    variable = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    before = os.environ.get(variable)
    logs = [getLogger(name) for name in root.manager.loggerDict if name.startswith("torch.distributed")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
        for number, handler in handlers.items():
            # Only the main thread may, and there alone the agent did.
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _first_error(folder: Path, failures: Mapping[int, Any]) -> BaseException:
    """What to raise where processes failed: a mistake of the user's before what it led to elsewhere."""
    if (error := _mistake(folder)) is not None:
        return error
    said = _said(folder)
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    # The agent ends by SIGTERM those that are left, and they themselves by LEFT.
    told = {each["rank"] for each in said}
    silent = {r: code for r, code in codes.items() if r not in told and code not in (LEFT, -signal.SIGTERM)}
    if silent or not said:
        rank, code = min((silent or codes).items())
        how = f"with signal {-code}" if code < 0 else f"with exit code {code}"
        return TdpoError(
            f"rank {rank}, one of the processes, ended {how} without a word{_HINTS.get(code, '')}: "
            "checkpoints are kept; the same command with --resume goes on from the last"
        )
    return RuntimeError(f"rank {said[0]['rank']}:\n{said[0]['message']}")


def _mistake(folder: Path) -> BaseException | None:
    """The first of the errors that are said in a line, and of the ends that were asked for."""
    first = next((each for each in _said(folder) if each["kind"]), None)
    if first is None:
        return None
    otherwise = KeyboardInterrupt if first["kind"] == "KeyboardInterrupt" else TdpoError
    kind: Any = getattr(errors, first["kind"], otherwise)
    return kind(*(first[name] for name in ("message", "signal") if first[name] is not None))


def _said(folder: Path) -> list[dict[str, Any]]:
    """What the processes left in the folder, in order of time."""
    said = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(ERROR_FILE.format(rank="*"))]
    return sorted(said, key=lambda each: each["time"])
