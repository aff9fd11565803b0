"""Contenders in processes of their own, taken in turns: their times and their peak memory.

A benchmark's parent process imports nothing heavy and measures nothing: each contender lives in a child that
sets itself up, says so, and then does one repetition whenever it is told to. The parent takes the contenders
in turns (A B C, B C A, C A B, ...), so that whatever else the machine does falls on all of them, and what a
child needs at its peak is its own.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Repeat = Callable[[], dict[str, Any]]
"""One repetition: does the work and returns what it measured, at least ``seconds`` (see :func:`timed`)."""

Setup = Callable[[dict[str, Any]], Repeat]
"""Makes a contender ready, from the parameters of its case."""


def timed(work: Callable[[], Any]) -> Repeat:
    """A repetition that measures the wall-clock seconds of ``work``, the GPU's part included."""

    def repeat() -> dict[str, Any]:
        start = time.perf_counter()
        found = work()
        wait_for_gpu()
        return {"seconds": time.perf_counter() - start, **(found if isinstance(found, dict) else {})}

    return repeat


def wait_for_gpu() -> None:
    """Wait until what was sent to the GPU is done; nothing where torch is not loaded or there is none."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def has_gpu() -> bool:
    """Whether the contenders will find a GPU; asked without starting CUDA in this process."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return "GPU" in found.stdout and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


# --- The child's side ---------------------------------------------------------------------------------------


def serve(contenders: Mapping[str, Setup]) -> None:
    """Be a contender if this process was started as one (then this does not return)."""
    if len(sys.argv) < 2 or sys.argv[1] != "--contender":
        return
    # Whatever libraries print goes to stderr; the real stdout is for the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    task = json.loads(sys.argv[2])
    try:
        repeat = contenders[task["contender"]](task["parameters"])
        forget_peak_memory()
        before = peak_memory()
        answers.write(json.dumps({"ready": True}) + "\n")
        for line in sys.stdin:
            found = repeat() if line.strip() == "go" else {"peak": peak_memory(), "before": before}
            answers.write(json.dumps(found) + "\n")
    except Exception as error:
        if not _is_for_want_of_memory(error):
            raise
        answers.write(json.dumps({"out_of_memory": str(error).split("\n")[0]}) + "\n")
    # Not sys.exit: threads that a library left behind must not keep the process.
    answers.flush()
    os._exit(0)


def _is_for_want_of_memory(error: BaseException) -> bool:
    """Whether torch raised it because a GPU is full, or something else did because of that."""
    reason = error.__cause__ or error.__context__
    return type(error).__name__ == "OutOfMemoryError" or (
        reason is not None and _is_for_want_of_memory(reason)
    )


def peak_memory() -> dict[str, int]:
    """Bytes at the highest so far: ``rss`` of this process and, where torch found one, ``gpu``."""
    peak = {"rss": _peak_rss()}
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def forget_peak_memory() -> None:
    """Let :func:`peak_memory` start from what is held now: importing and loading are not what is measured."""
    with contextlib.suppress(OSError):
        # Linux only.
        Path("/proc/self/clear_refs").write_text("5")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_rss() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- The parent's side --------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """A contender needs more of the GPU's memory than there is."""


class Contender:
    """A child process that is ready to repeat its work. A context manager.

    Args:
        script: the benchmark's file, which calls :func:`serve` first.
        name: which of its contenders.
        parameters: what its setup gets; and a ``folder`` that is removed afterwards.
    """

    def __init__(self, script: str, name: str, parameters: Mapping[str, Any]):
        self.name = name
        self.measured: list[dict[str, Any]] = []
        self.peak: dict[str, Any] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="tdpo-benchmark-")
        task = json.dumps({"contender": name, "parameters": {**parameters, "folder": self._folder.name}})
        self._child = subprocess.Popen(
            [sys.executable, script, "--contender", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *args: object) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(30)
        self._child.kill()
        self._child.wait()
        self._folder.cleanup()

    def wait_until_ready(self) -> None:
        """Return when the child has set itself up.

        Raises:
            RuntimeError: it died; OutOfMemoryError where that was for want of the GPU's memory.
        """
        self._answer()

    def go(self, *, keep: bool = True) -> dict[str, Any]:
        """One repetition; its measurement is kept unless it is only to warm up."""
        found = self._ask("go")
        if keep:
            self.measured.append(found)
        return found

    def finish(self) -> None:
        """Note the peak memory of the repetitions."""
        self.peak = self._ask("memory")

    @property
    def seconds(self) -> list[float]:
        """Of every kept repetition."""
        return [found["seconds"] for found in self.measured]

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(what + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"contender {self.name} died with exit status {self._child.wait()}")
        answer = json.loads(line)
        if "out_of_memory" in answer:
            raise OutOfMemoryError(f"contender {self.name}: {answer['out_of_memory']}")
        return answer


def in_turns(
    script: str, tasks: Mapping[str, tuple[str, Mapping[str, Any]]], rounds: int, *, warm_up: bool = True
) -> dict[str, Contender]:
    """Run contenders in turns and return them with what they measured.

    Args:
        script: the benchmark's file.
        tasks: label -> (contender, parameters).
        rounds: kept repetitions of each. Who goes first changes from round to round.
        warm_up: do one repetition of each first that does not count.
    """
    with contextlib.ExitStack() as stack:
        contenders = {}
        for label, (name, parameters) in tasks.items():
            # One sets itself up at a time: loading side by side would need memory that no run needs.
            contenders[label] = stack.enter_context(Contender(script, name, parameters))
            contenders[label].wait_until_ready()
        labels = list(contenders)
        if warm_up:
            for label in labels:
                contenders[label].go(keep=False)
        for turn in range(rounds):
            for place in range(len(labels)):
                contenders[labels[(turn + place) % len(labels)]].go()
        for contender in contenders.values():
            contender.finish()
    return contenders


def one_by_one(
    script: str, tasks: Mapping[str, tuple[str, Mapping[str, Any]]], rounds: int, *, warm_up: bool = True
) -> dict[str, Contender]:
    """The same, each contender done before the next is started; for a GPU, which holds one of them at a time.

    One that runs out of the GPU's memory is left out.
    """
    done = {}
    for label, task in tasks.items():
        try:
            done |= in_turns(script, {label: task}, rounds, warm_up=warm_up)
        except OutOfMemoryError as error:
            print(error, file=sys.stderr, flush=True)
    return done


def prepare(script: str, name: str, parameters: Mapping[str, Any]) -> None:
    """Run a contender's setup and nothing else: what others are to find done, out of their memory."""
    with Contender(script, name, parameters) as child:
        child.wait_until_ready()


def best(seconds: Sequence[float]) -> float:
    """The smallest of some times: what the work takes where nothing else disturbs it."""
    return min(seconds)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster ``fast`` is, as the median over rounds: both of a round saw the same machine."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
