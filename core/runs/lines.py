"""Files of JSON objects with ``step``, one a line, that a run appends to: its figures, its samples."""

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class StepLines:
    """A file of JSON objects with ``step``, one a line, that a resumed run goes on with."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, step: int) -> None:
        """Drop what a cut-off run wrote after the checkpoint of ``step``; everything at step 0."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")
        kept = [line for line in lines if step and _step(line) <= step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def append(self, step: int, values: dict[str, Any]) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")

    def read(self) -> tuple[list[dict[str, Any]], str | None]:
        """The objects, in their order, and what of the file could not be read, in words; None if all could.

        A line that a kill cut short, or that is none of ours, is left out.
        """
        if not self.path.exists():
            return [], f"{self.path} is not there"
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        unread = [number for number, line in enumerate(lines, 1) if _step(line) == float("inf")]
        events = [json.loads(line) for line in lines if _step(line) != float("inf")]
        if not unread:
            return events, None
        if unread == [len(lines)]:
            return events, f"{self.path} is cut short: its last line, {len(lines)}, is no whole JSON object"
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        return events, f"{self.path}: line {unread[0]}{more} cannot be read and was left out"


def _step(line: str) -> float:
    # A line that a kill cut short counts as later than everything.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
