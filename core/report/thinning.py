"""Long lines drawn with as many points as a chart has pixels: means of steps that follow each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .gather import Line

MOST_POINTS = 500
"""Points of a line. A chart of a page is about as many pixels wide."""


@dataclass(frozen=True)
class Point:
    """The mean of a figure over some steps that follow each other, or its value at one."""

    first: int
    last: int
    """The steps: ``first`` to ``last``, both included."""
    value: float
    low: float
    high: float
    """Smallest and largest of the values."""

    @property
    def step(self) -> float:
        """Where it is drawn: the middle of the steps."""
        return (self.first + self.last) / 2

    @property
    def steps(self) -> str:
        """The steps in words: ``120`` or ``101-120``."""
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}\N{EN DASH}{self.last:,}"


@dataclass(frozen=True)
class Grid:
    """Steps that lines are averaged over, the same for all of a chart: 0, 1 to w, w + 1 to 2w, ..."""

    width: int
    """w; 1 where every value stands for itself."""
    end: int
    """The last step of all lines."""

    @classmethod
    def over(cls, lines: Sequence[Line], most: int = MOST_POINTS) -> "Grid":
        """The finest on which no line has more than ``most`` points."""
        end = max((line.points[-1][0] for line in lines), default=0)
        if max((len(line.points) for line in lines), default=0) <= most:
            return cls(1, end)
        # Step 0, before training, has a point of its own.
        return cls(math.ceil(end / (most - 1)), end)

    def points(self, line: Line) -> list[Point]:
        """The line's points, by step; values that are not finite are left out."""
        bins: dict[int, list[float]] = {}
        for step, value in line.points:
            if math.isfinite(value):
                bins.setdefault(-(-step // self.width), []).append(value)
        return [self._point(number, bins[number]) for number in sorted(bins)]

    def _point(self, number: int, values: list[float]) -> Point:
        first, last = max((number - 1) * self.width + 1, 0), min(number * self.width, self.end)
        return Point(first, last, math.fsum(values) / len(values), min(values), max(values))
