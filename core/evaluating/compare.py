"""Two policies on the same pairs: differences of their figures, with intervals of the differences.

The resamples draw prompts with both policies' figures of their pairs, so that what makes a pair easy or hard
for both cancels. The p-value is that of a sign-flip permutation test of "no difference": were the policies
exchangeable, each prompt's difference could as well have the other sign.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .intervals import Bootstrap, point_values
from .table import Table

_FLIPS = 9999
_HELD = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A figure of policy ``b`` less that of policy ``a``."""

    a: float
    b: float
    value: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided; None for figures that are no means over pairs, and where there is a single prompt."""
    count: int
    """Rows that have the figure."""
    prompts: int

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def differences(a: Table, b: Table, names: Sequence[str], bootstrap: Bootstrap) -> dict[str, Difference]:
    """The differences ``b - a`` of the figures ``names``.

    Args:
        a: one policy's table.
        b: the other's, of the same rows in the same order.
        names: figures that both have.
        bootstrap: how intervals are made.
    """
    a, b = _where_both(a, b), _where_both(b, a)
    of_a, of_b = point_values(a, names), point_values(b, names)
    spread_a, spread_b = bootstrap.replicates(a, names), bootstrap.replicates(b, names)
    found = {}
    for at, name in enumerate(names):
        apart = None if spread_a is None or spread_b is None else spread_b[:, at] - spread_a[:, at]
        low, high = bootstrap.interval(apart)
        there = ~np.isnan(a.figures[name]) if name in a.figures else np.ones(len(a), bool)
        found[name] = Difference(
            float(of_a[at]),
            float(of_b[at]),
            float(of_b[at] - of_a[at]),
            low,
            high,
            _p_value(a, b, name, bootstrap.seed) if name in a.figures else None,
            int(there.sum()),
            len(np.unique(a.groups[there])),
        )
    return found


def _where_both(one: Table, other: Table) -> Table:
    """``one`` without the figures of rows that ``other`` has none of."""
    figures = {
        name: np.where(np.isnan(other.figures[name]), np.nan, values) if name in other.figures else values
        for name, values in one.figures.items()
    }
    return replace(one, figures=figures)


def _p_value(a: Table, b: Table, name: str, seed: int) -> float | None:
    """Of the sign-flip test over prompts; None for a single prompt."""
    apart = b.figures[name] - a.figures[name]
    there = ~np.isnan(apart)
    weights = a.weights.get(name, np.ones(len(a)))
    if not np.array_equal(weights, b.weights.get(name, np.ones(len(b)))):
        return None
    groups, place = np.unique(a.groups[there], return_inverse=True)
    if len(groups) < 2:
        return None
    sums = np.bincount(place, (apart * weights)[there], len(groups))
    scale = np.abs(sums).sum()
    if not scale:
        return 1.0
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _HELD // len(groups))
    as_far = 0
    for start in range(0, _FLIPS, at_a_time):
        size = min(at_a_time, _FLIPS - start)
        signs = 2.0 * generator.integers(0, 2, (size, len(groups))) - 1
        # Equal sums, added in another order, are as far apart too.
        as_far += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12 * scale).sum())
    return (as_far + 1) / (_FLIPS + 1)
