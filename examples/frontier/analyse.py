"""From the figures of all policies to what is claimed: areas under the frontiers, KL balance, the cache.

Everything is computed for each seed alone, and then told as a mean over seeds with Student's 95 % interval;
two objectives are compared by their differences seed by seed.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .plan import BY_NAME, Plan
from .store import UnusableError, read_lines

# Student's t at 97.5 %, by degrees of freedom from 1 on.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip

BASE = "dpo"
TWIN = "tdpo2-0.5"  # what the exact and the truncated cache are compared with


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Interval":
        """Of at least two independent values, by Student's t."""
        values = list(values)
        t = _T[min(len(values) - 1, len(_T)) - 1]
        return cls(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values)))

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0; else 0: not told apart."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Experiment:
    """The figures of the seeds that are finished."""

    plan: Plan
    rows: dict[tuple[str, float, int], dict[str, Any]]
    pilots: list[dict[str, Any]]
    seeds: tuple[int, ...]
    """Of which every policy is there."""

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """The experiment whose results lie at ``path``.

        Raises:
            UnusableError: there are none, or fewer than two seeds are finished.
        """
        if not path.is_file():
            raise UnusableError(f"{path}: no such file; run the experiment first")
        header, *lines = read_lines(path)
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in header["plan"].items()}
        plan = Plan(**found)
        rows = {(row["series"], row["beta"], row["seed"]): row for row in lines if row["series"] != "pilot"}
        missing = {cell.seed for cell in plan.cells if cell.key not in rows}
        seeds = tuple(seed for seed in plan.seeds if seed not in missing)
        if len(seeds) < 2:
            raise UnusableError(
                f"{path}: {len(seeds)} of {len(plan.seeds)} seeds are finished and intervals take two; go on "
                "with the run"
            )
        return cls(plan, rows, [row for row in lines if row["series"] == "pilot"], seeds)

    @property
    def objectives(self) -> list[str]:
        """The series that differ by more than their cache."""
        return [name for name in self.plan.series if BY_NAME[name].cache == "sparse"]

    def over_seeds(self, series: str, beta: float, figure: str) -> list[float]:
        """One figure of a policy, a seed each."""
        return [self.rows[series, beta, seed][figure] for seed in self.seeds]

    def gain(self, series: str, beta: float, seed: int) -> float:
        """Expected reward less that of the reference on the same prompts."""
        return float(self.rows[series, beta, seed]["reward"] - self.rows["reference", 0.0, seed]["reward"])

    def gains(self, series: str, beta: float) -> list[float]:
        """The same for all seeds."""
        return [self.gain(series, beta, seed) for seed in self.seeds]


def frontier(
    experiment: Experiment, series: str, seed: int, axis: str = "kl"
) -> tuple[list[float], list[float]]:
    """KL and reward gained of one seed's policies by rising KL; the reference, at (0, 0), is the first."""
    points = [
        (float(experiment.rows[series, beta, seed][axis]), experiment.gain(series, beta, seed))
        for beta in experiment.plan.betas
    ]
    points = [(0.0, 0.0), *sorted(points)]
    return [kl for kl, _ in points], [gain for _, gain in points]


def area(kl: Sequence[float], gain: Sequence[float], budget: float, start: float = 0.0) -> float:
    """Mean reward gained over KL budgets from ``start`` to ``budget``: the area under the frontier, by width.

    Between two policies the frontier is a line over the square root of the KL, and budgets count evenly on
    that scale: gains near the reference grow like it (Gao et al., arXiv 2210.10760), so that an objective
    whose first policy is far out loses nothing by the line to it. Past the last policy, which spends less
    than the budget, the frontier stays at its gain.
    """
    root, low, high = np.sqrt(kl), math.sqrt(start), math.sqrt(budget)
    at = np.array([low, *root[(root > low) & (root < high)], high])
    return float(np.trapezoid(np.interp(at, root, gain), at) / (high - low))


def areas(experiment: Experiment, series: str, budget: float, axis: str = "kl") -> list[float]:
    """The area under the frontier of each seed."""
    return [area(*frontier(experiment, series, seed, axis), budget) for seed in experiment.seeds]


def common_budget(experiment: Experiment, axis: str = "kl") -> float:
    """The largest KL that every objective's frontier reaches on every seed: nothing is extended up to it."""
    return min(
        frontier(experiment, name, seed, axis)[0][-1]
        for name in experiment.objectives
        for seed in experiment.seeds
    )


def base_budget(experiment: Experiment, axis: str = "kl") -> float:
    """The largest KL that DPO's frontier reaches on every seed; others may end before."""
    return min(frontier(experiment, BASE, seed, axis)[0][-1] for seed in experiment.seeds)


def difference(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Of two objectives, seed by seed."""
    return Interval.of(a - b for a, b in zip(values, others, strict=True))


def compare(experiment: Experiment, series: str, base: str, budget: float, axis: str = "kl") -> Interval:
    """Area under the frontier of ``series`` less that of ``base``."""
    return difference(areas(experiment, series, budget, axis), areas(experiment, base, budget, axis))


def compare_between(experiment: Experiment, series: str, base: str, axis: str = "kl") -> Interval | None:
    """The same over the budgets at which both have policies on either side; None where a seed has none.

    Of each seed, from the larger of the two least KLs to the smaller of the two largest.
    """
    found = []
    for seed in experiment.seeds:
        one, other = (frontier(experiment, name, seed, axis) for name in (series, base))
        # The first point is the reference.
        start, end = max(one[0][1], other[0][1]), min(one[0][-1], other[0][-1])
        if start >= end:
            return None
        found.append(area(*one, end, start) - area(*other, end, start))
    return Interval.of(found)


@dataclass(frozen=True)
class Moved:
    """Where policies end up that differ from others in one thing alone: the mean over betas."""

    gain: Interval
    """Reward less that of the other policy of the same beta and seed."""
    kl: Interval
    """Logarithm of the KL over the other's: 0.1 is a tenth more."""


def moved(experiment: Experiment, series: str, base: str) -> Moved:
    """The policies of ``series`` against those of ``base``."""
    betas, seeds = experiment.plan.betas, experiment.seeds
    gain = experiment.gain
    gains = [
        statistics.fmean(gain(series, beta, seed) - gain(base, beta, seed) for beta in betas)
        for seed in seeds
    ]
    logs = [
        statistics.fmean(
            math.log(experiment.rows[series, beta, seed]["kl"] / experiment.rows[base, beta, seed]["kl"])
            for beta in betas
        )
        for seed in seeds
    ]
    return Moved(Interval.of(gains), Interval.of(logs))


@dataclass(frozen=True)
class Balance:
    """The KL of chosen and rejected held-out completions at the end of training, a seed each, in nats."""

    chosen: list[float]
    rejected: list[float]

    @classmethod
    def of(cls, experiment: Experiment, series: str, beta: float) -> "Balance":
        """Of the policies of one objective and beta."""
        curves = experiment.over_seeds(series, beta, "curves")
        return cls([c["chosen"][-1] for c in curves], [c["rejected"][-1] for c in curves])  # type: ignore[index]

    @property
    def gap(self) -> list[float]:
        """Rejected less chosen."""
        return [r - c for c, r in zip(self.chosen, self.rejected, strict=True)]

    @property
    def relative(self) -> list[float]:
        """The gap over the mean of the two: what is left of it when all KL is smaller."""
        return [2 * (r - c) / (r + c) for c, r in zip(self.chosen, self.rejected, strict=True)]

    @property
    def imbalance(self) -> list[float]:
        """The size of the relative gap, whichever side is ahead."""
        return [abs(each) for each in self.relative]


@dataclass(frozen=True)
class Tracking:
    """How an estimate of the KL follows the exact one over policies."""

    ratio: Interval
    """Estimate over exact value: a seed's mean over its policies, then over seeds."""
    least: float
    most: float
    """The ratio's range over all of them."""

    @classmethod
    def of(cls, by_seed: Sequence[Sequence[float]]) -> "Tracking":
        """Of the ratios of each seed."""
        every = [ratio for ratios in by_seed for ratio in ratios]
        return cls(Interval.of(statistics.fmean(one) for one in by_seed), min(every), max(every))


def track_pairs(experiment: Experiment, kind: str) -> Tracking:
    """The estimate from a cache, ``sparse`` or ``truncated``, on held-out pairs while training.

    Over both sides and all steps of the policies that it was set beside the exact value for.
    """
    return Tracking.of([[r for _, r in pair_ratios(experiment, seed, kind)] for seed in experiment.seeds])


def pair_ratios(experiment: Experiment, seed: int, kind: str) -> list[tuple[float, float]]:
    """(exact KL, estimate over it) of one seed's policies, sides and steps."""
    found = []
    for name in experiment.plan.series:
        if not BY_NAME[name].compares_estimates:
            continue
        for beta in experiment.plan.betas:
            curves = experiment.rows[name, beta, seed]["curves"]
            for side in ("chosen", "rejected"):
                pairs = zip(curves[side], curves[f"{side}_{kind}"], strict=True)
                found += [(exact, estimate / exact) for exact, estimate in pairs]
    return found


def track_samples(experiment: Experiment, figure: str) -> Tracking:
    """A truncated KL on own samples, such as ``kl_top_8``, of every policy."""
    return Tracking.of(
        [
            [
                row[figure] / row["kl"]
                for name in experiment.plan.series
                for beta in experiment.plan.betas
                if (row := experiment.rows[name, beta, seed])
            ]
            for seed in experiment.seeds
        ]
    )
