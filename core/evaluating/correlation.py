"""Correlations over weighted rows, for many weightings at once."""

from collections.abc import Callable

import numpy as np

from .calibration import MARGIN
from .table import Derived, Table

Correlate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def derived_figures() -> dict[str, Derived]:
    """How reward goes with length: over completions, both sides of all pairs, and over pairs."""
    return {
        "length/reward_pearson": _over_sides(pearson),
        "length/reward_spearman": _over_sides(spearman),
        "length/margin_pearson": _over_pairs(pearson),
        "length/margin_spearman": _over_pairs(spearman),
    }


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x [N] and y [N] under each of the weightings [R, N]: [R].

    NaN where one of them does not vary.
    """
    # About the means of all rows: moments about a far-off origin would cancel.
    x, y = x - x.mean(), y - y.mean()
    total, sx, sy, sxx, syy, sxy = (weights @ np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)).T
    return _correlation(sxx - sx * sx / total, syy - sy * sy / total, sxy - sx * sy / total, sxx, syy)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation likewise: Pearson's of the ranks within each weighting, ties sharing theirs."""
    # Ranks have the same mean in every weighting: half of its total.
    half = weights.sum(1, keepdims=True) / 2
    a, b = _ranks(x, weights) - half, _ranks(y, weights) - half
    left = weights * a
    xx, xy = np.einsum("rn,rn->r", left, a), np.einsum("rn,rn->r", left, b)
    yy = np.einsum("rn,rn,rn->r", weights, b, b)
    largest = half[:, 0] ** 3
    return _correlation(xx, yy, xy, largest, largest)


def _correlation(
    xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, scale_x: np.ndarray, scale_y: np.ndarray
) -> np.ndarray:
    """From central moments [R]; NaN where one is nothing but rounding beside its scale."""
    flat = (xx <= 1e-14 * scale_x) | (yy <= 1e-14 * scale_y)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = xy / np.sqrt(xx * yy)
    return np.where(flat, np.nan, found)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank of each value [N] among rows that count ``weights`` [R, N] times, ties sharing theirs: [R, N]."""
    _, place = np.unique(values, return_inverse=True)
    of_value = np.zeros((len(weights), int(place.max()) + 1))
    for row, weight in zip(of_value, weights, strict=True):
        row += np.bincount(place, weight, len(row))
    middle = np.cumsum(of_value, 1) - of_value / 2
    return middle[:, place]


def _over_sides(correlate: Correlate) -> Derived:
    def found(table: Table, weights: np.ndarray) -> np.ndarray:
        rewards = np.concatenate([table.figures["rewards/chosen"], table.figures["rewards/rejected"]])
        lengths = np.concatenate([table.columns["chosen_tokens"], table.columns["rejected_tokens"]])
        return correlate(rewards, lengths.astype(np.float64), np.concatenate([weights, weights], 1))

    return found


def _over_pairs(correlate: Correlate) -> Derived:
    def found(table: Table, weights: np.ndarray) -> np.ndarray:
        return correlate(
            table.figures[MARGIN], table.columns["length_difference"].astype(np.float64), weights
        )

    return found
