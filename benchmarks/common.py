"""What the benchmarks share: contenders in processes of their own, taken in turns; tables, JSON, pictures.

A benchmark's parent process imports nothing heavy and measures nothing: each contender lives in a child that
sets itself up, says so, and then does one repetition whenever it is told to. The parent takes the contenders
in turns (A B C, B C A, C A B, ...), so that whatever else the machine does falls on all of them, and what a
child needs at its peak is its own.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

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
    repeat = contenders[task["contender"]](task["parameters"])
    before = peak_memory(reset=True)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        found = repeat() if line.strip() == "go" else {"peak": peak_memory(), "before": before}
        answers.write(json.dumps(found) + "\n")
    # Not sys.exit: threads that a library left behind must not keep the process.
    answers.flush()
    os._exit(0)


def peak_memory(*, reset: bool = False) -> dict[str, int]:
    """Bytes at the highest so far: ``rss`` of this process and, where torch found one, ``gpu``."""
    peak = {"rss": _peak_rss()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    if reset:
        with contextlib.suppress(OSError):
            # Linux: forget the highest resident set so far, importing and loading included.
            Path("/proc/self/clear_refs").write_text("5")
        if "gpu" in peak:
            torch.cuda.reset_peak_memory_stats()
    return peak


def _peak_rss() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- The parent's side --------------------------------------------------------------------------------------


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
        """Return when the child has set itself up. Raises RuntimeError where it died."""
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
        return json.loads(line)


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


def best(seconds: Sequence[float]) -> float:
    """The smallest of some times: what the work takes where nothing else disturbs it."""
    return min(seconds)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster ``fast`` is, as the median over rounds: both of a round saw the same machine."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


# --- What is left of a run ----------------------------------------------------------------------------------


def arguments(doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options of every benchmark; a benchmark may add its own."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=rounds, help="repetitions of every contender")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder for the JSON and the picture"
    )
    return parser


def machine() -> dict[str, Any]:
    """What a number depends on besides the code: kind of machine, versions, date, commit."""
    packages = ("tdpo", "torch", "transformers", "pyarrow", "numpy", "trl")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-changed" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    if not has_gpu():
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()[0]


Columns = Mapping[str, tuple[str, str]]
"""Key of a row -> its heading and its format, such as ``("tokens/s", ",.0f")``."""


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """Rows as aligned text; a value that a row lacks is a dash."""
    cells = [[heading for heading, _ in columns.values()], *_cells(rows, columns)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    left = [form in ("", "s") for _, form in columns.values()]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    )


def markdown(path: str | Path) -> str:
    """The table of a results file as Markdown, with a line that says when, where and of what it is."""
    content = json.loads(Path(path).read_text())
    columns, made = content["columns"], content["machine"]
    left = [form in ("", "s") for _, form in columns.values()]
    lines = [
        "| " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "| " + " | ".join("---" if to_left else "---:" for to_left in left) + " |",
        *("| " + " | ".join(cells) + " |" for cells in _cells(content["rows"], columns)),
    ]
    where = made["gpu"] or f"{made['cpu']}, {made['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines += ["", *content["notes"], f"{made['date']}, commit {made['commit']}; {where}; {versions}."]
    return "\n".join(lines)


def _cells(rows: Sequence[Mapping[str, Any]], columns: Columns) -> Iterator[list[str]]:
    for row in rows:
        yield [
            "-" if (value := row.get(key)) is None else format(value, form)
            for key, (_, form) in columns.items()
        ]


def finish(
    name: str,
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    columns: Columns,
    notes: Sequence[str],
    draw: Callable[[Any, Sequence[Mapping[str, Any]]], None],
) -> None:
    """Print the table and write it as ``NAME.json``, with the machine it is of, and ``NAME.png``.

    Args:
        name: of the benchmark.
        options: the command line, from :func:`arguments`.
        rows: the measurements.
        columns: which of a row's values the table shows.
        notes: sentences that belong to the table.
        draw: draws the rows into a matplotlib figure.
    """
    print(table(rows, columns))
    for note in notes:
        print(note)
    options.results.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "machine": machine(),
        "quick": options.quick,
        "columns": columns,
        "rows": rows,
        "notes": notes,
    }
    (options.results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(8, 4.5), layout="constrained")
    draw(figure, rows)
    figure.savefig(options.results / f"{name}.png", dpi=120)
    print(f"wrote {options.results / name}.json and .png", flush=True)
