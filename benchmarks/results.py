"""What is left of a run: a table, JSON that says what machine it is of, a picture, Markdown for the docs."""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import has_gpu

RESULTS = Path(__file__).parent / "results"


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
    save(name, options, rows, columns, notes)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(8, 4.5), layout="constrained")
    draw(figure, rows)
    figure.savefig(options.results / f"{name}.png", dpi=120)
    print(f"wrote {options.results / name}.json and .png", flush=True)


def save(
    name: str,
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    columns: Columns,
    notes: Sequence[str],
) -> None:
    """Write ``NAME.json``; also what a long benchmark has so far. The arguments are :func:`finish`'s."""
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
