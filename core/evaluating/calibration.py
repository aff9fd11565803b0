"""Whether the implicit reward knows how often it is right.

Under Bradley and Terry a margin of rewards says that ``chosen`` is preferred with the probability
``sigmoid(margin)``. Every pair's label is "chosen is preferred", so reliability is asked of the side that
the policy prefers: it claims to be right with ``sigmoid(|margin|)``, from one half upwards, and is right
where the margin is above zero; a margin of zero counts as half right.
"""

from typing import Any

import numpy as np

from .table import Derived, Table

MARGIN = "rewards/margins"


def pair_figures(margins: np.ndarray) -> dict[str, np.ndarray]:
    """The proper scores of each pair's probability, from margins [N]: Brier's and the log loss, in nats."""
    return {
        "calibration/brier": (1 - sigmoid(margins)) ** 2,
        "calibration/log_loss": np.logaddexp(0, -margins),
    }


NO_INTERVAL = ("calibration/ece", "calibration/ece_by_chance")
"""A sum of distances from zero: resampling only makes it larger."""


def derived_figures(bins: int) -> dict[str, Derived]:
    """The expected calibration error over equally wide bins of the claimed probability.

    And what it would be by chance, were the policy right just as often as it claims: what so few pairs
    cannot be told from. (Outcomes of a bin add up to a normal distribution.)
    """

    def expected_error(table: Table, weights: np.ndarray) -> np.ndarray:
        claimed, right, place = _claims(table, bins)
        inside = np.eye(bins)[place]
        gaps = weights @ (inside * (claimed - right)[:, None])
        found: np.ndarray = np.abs(gaps).sum(1) / weights.sum(1)
        return found

    def by_chance(table: Table, weights: np.ndarray) -> np.ndarray:
        claimed, _, place = _claims(table, bins)
        inside = np.eye(bins)[place]
        variances = weights @ (inside * (claimed * (1 - claimed))[:, None])
        found: np.ndarray = np.sqrt(2 / np.pi * variances).sum(1) / weights.sum(1)
        return found

    return {"calibration/ece": expected_error, "calibration/ece_by_chance": by_chance}


def reliability(table: Table, bins: int) -> list[dict[str, Any]]:
    """The reliability table: per bin of the claimed probability, pairs, and means of claim and outcome.

    Bins are equally wide from one half to one; those without pairs have no means.
    """
    claimed, right, place = _claims(table, bins)
    edges = np.linspace(0.5, 1, bins + 1)
    rows = []
    for at in range(bins):
        inside = place == at
        count = int(inside.sum())
        rows.append(
            {
                "low": float(edges[at]),
                "high": float(edges[at + 1]),
                "pairs": count,
                "predicted": float(claimed[inside].mean()) if count else None,
                "observed": float(right[inside].mean()) if count else None,
            }
        )
    return rows


def _claims(table: Table, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Claimed probability, whether that was right, and the bin of the claim, [N] each."""
    margins = table.figures[MARGIN]
    claimed = sigmoid(np.abs(margins))
    place = np.minimum(((claimed - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    return claimed, half_ties(margins), place


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return found


def half_ties(difference: np.ndarray) -> np.ndarray:
    """1 where a difference is above zero, one half where it is zero, 0 below; NaN stays."""
    found: np.ndarray = (np.sign(difference) + 1) / 2
    return found
