"""Progress for what takes long: a rich bar on a terminal, plain lines elsewhere, on stderr."""

import sys
import time
from types import TracebackType
from typing import Any

_PLAIN_SECONDS = 10.0


class Progress:
    """How far a piece of work is, how fast it goes, and how long it will still take.

    Args:
        what: the work, in a word or two.
        total: items to do; None where that is not known before the end.
        unit: what the rate counts, such as ``"tokens"``.
        quiet: show nothing.
    """

    def __init__(self, what: str, total: int | None, unit: str, *, quiet: bool = False):
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done = 0
        self._told = -1
        self.start = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, unit=self.unit, rate="-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not self.quiet and self._told != self.done:
            self._plain_line()

    def advance(self, amount: int) -> None:
        """``amount`` more items are done."""
        self.reach(self.done + amount)

    def reach(self, done: int) -> None:
        """``done`` items are done in all."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate_text(self.rate))
        elif not self.quiet and time.monotonic() - self._last > _PLAIN_SECONDS:
            self._plain_line()

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Items a second since the start."""
        return self.done / max(time.monotonic() - self.start, 1e-9)

    def _plain_line(self) -> None:
        self._last, self._told = time.monotonic(), self.done
        total, ending = self.total if self.total is not None else self.done, ""
        if self.done < total:
            left = (total - self.done) / self.rate if self.done else 0
            ending = f", {left:.0f} s left"
        of = f" of {total:,}" if self.total is not None else ""
        self.note(f"{self.what}: {self.done:,}{of} {self.unit}, {rate_text(self.rate)} {self.unit}/s{ending}")


def rate_text(rate: float) -> str:
    """A rate with as many digits as it deserves."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[rate]} {task.fields[unit]}/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
