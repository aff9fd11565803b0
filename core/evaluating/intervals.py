"""Confidence intervals by resampling prompts: several pairs of one prompt are drawn together.

The percentile bootstrap (Efron 1979) over clusters (Cameron, Gelbach & Miller 2008): of ``C`` prompts, ``C``
are drawn with replacement, each with all of its rows. Where no prompt repeats it is the plain bootstrap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .table import Table

# Numbers that are held at a time, in a matrix of resamples by rows.
_HELD = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure of some rows."""

    value: float
    low: float | None
    """Lower end of the interval; None where there is none: no resamples, rows of a single prompt, or a figure
    that resampling is not fit for."""
    high: float | None
    rows: int
    """Rows that have the figure."""
    prompts: int
    """Of how many prompts they are."""

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "count": self.rows,
            "prompts": self.prompts,
        }


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    times: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def estimates(self, table: Table, names: Sequence[str]) -> dict[str, Estimate]:
        """The figures ``names`` of a table, each with its interval."""
        values = point_values(table, names)
        spread = self.replicates(table, names)
        found = {}
        for at, name in enumerate(names):
            low, high = self.interval(None if spread is None else spread[:, at])
            own = table.figures.get(name)
            there = np.ones(len(table), bool) if own is None else ~np.isnan(own)
            prompts = len(np.unique(table.groups[there]))
            found[name] = Estimate(float(values[at]), low, high, int(there.sum()), prompts)
        return found

    def replicates(self, table: Table, names: Sequence[str]) -> np.ndarray | None:
        """The figures of each resample, float64 [times, len(names)]; None where none can be drawn.

        Those that get no interval are NaN.
        """
        groups = np.unique(table.groups, return_inverse=True)[1]
        count = int(groups.max()) + 1 if len(groups) else 0
        if count < 2 or not self.times:
            return None
        means = [name for name in names if name in table.figures]
        sums, weights = _cluster_sums(table, means, groups, count)
        found = np.full((self.times, len(names)), np.nan)
        places = {name: at for at, name in enumerate(names)}
        done = 0
        for drawn in self._drawn(count, len(table)):
            rows = slice(done, done + len(drawn))
            with np.errstate(invalid="ignore", divide="ignore"):
                found[rows, [places[name] for name in means]] = (drawn @ sums) / (drawn @ weights)
            spread = [name for name in names if name in table.derived and name not in table.no_interval]
            if spread:
                of_rows = drawn[:, groups]
                for name in spread:
                    found[rows, places[name]] = table.derived[name](table, of_rows)
            done += len(drawn)
        return found

    def interval(self, replicates: np.ndarray | None) -> tuple[float | None, float | None]:
        """Both ends of the percentile interval of replicates [times]; None without any."""
        if replicates is None or np.isnan(replicates).all():
            return None, None
        out = (1 - self.confidence) / 2
        low, high = np.nanquantile(replicates, [out, 1 - out])
        return float(low), float(high)

    def _drawn(self, count: int, rows: int) -> Iterator[np.ndarray]:
        """How often each of ``count`` prompts is in a resample: float64 [some, count], ``times`` in all."""
        generator = np.random.default_rng(self.seed)
        at_a_time = max(1, _HELD // max(rows, count))
        for start in range(0, self.times, at_a_time):
            size = min(at_a_time, self.times - start)
            picks = generator.integers(0, count, (size, count))
            flat = picks + count * np.arange(size)[:, None]
            yield np.bincount(flat.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def point_values(table: Table, names: Sequence[str]) -> np.ndarray:
    """The figures of the table itself, float64 [len(names)]."""
    once = np.ones((1, len(table)))
    values = []
    for name in names:
        if name in table.derived:
            values.append(float(table.derived[name](table, once)[0]))
            continue
        own, weights = _weighed(table, name)
        total = weights.sum()
        values.append(float((own * weights).sum() / total) if total else float("nan"))
    return np.array(values)


def _weighed(table: Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of a figure; rows that have none count for nothing."""
    values = table.figures[name]
    there = ~np.isnan(values)
    weights = table.weights.get(name, np.ones(len(table)))
    return np.where(there, values, 0.0), np.where(there, weights, 0.0)


def _cluster_sums(
    table: Table, names: Sequence[str], groups: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each prompt's rows of weighted values and of weights, [count, len(names)] each."""
    sums, weights = np.zeros((count, len(names))), np.zeros((count, len(names)))
    for at, name in enumerate(names):
        own, weight = _weighed(table, name)
        sums[:, at] = np.bincount(groups, own * weight, count)
        weights[:, at] = np.bincount(groups, weight, count)
    return sums, weights
