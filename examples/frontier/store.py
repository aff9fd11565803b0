"""The results on disk: one JSON object a line, and what a killed run left half-written is cut off."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .plan import Plan

RESULTS = "results.jsonl"
_DIGITS = 5


class UnusableError(Exception):
    """A folder that this experiment cannot use; one line."""


class Results:
    """The figures of what is finished, in a file to which a line is added for each.

    Args:
        path: of the file; made, with the plan as its first line, when it is not there.
        plan: the experiment.

    Raises:
        UnusableError: the file is of another plan.
    """

    def __init__(self, path: Path, plan: Plan):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.loads(json.dumps({"plan": asdict(plan)}))
        rows = read_lines(path) if path.exists() else []
        if rows and rows[0] != header:
            raise UnusableError(f"{path}: holds the results of another plan; choose another folder")
        if path.exists():
            # A line without its end was being written when the run was killed.
            text = path.read_bytes()
            os.truncate(path, text.rfind(b"\n") + 1)
        self.rows: list[dict[str, Any]] = rows[1:]
        if not rows:
            self._append(header)

    def add(self, row: dict[str, Any]) -> None:
        """Add what is finished; it is on the disk when this returns."""
        row = rounded(row)
        self._append(row)
        self.rows.append(row)

    def of(self, series: str) -> list[dict[str, Any]]:
        """The rows of one series."""
        return [row for row in self.rows if row["series"] == series]

    @property
    def finished(self) -> set[tuple[str, float, int]]:
        """The keys of what is there."""
        return {(row["series"], row["beta"], row["seed"]) for row in self.rows}

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file: the plan, then the results."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def rounded(value: Any) -> Any:
    """Numbers at five significant digits, in whatever holds them."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; the lock goes with it, however it ends.

    Raises:
        UnusableError: another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnusableError(f"{folder}: another run is at work there; wait for it, or end it") from None
        yield
