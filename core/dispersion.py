"""How much a prompt leaves open, told from the reference's entropies (MallowsPO, arXiv 2405.14953).

With H the mean over a completion's tokens of the reference's entropy, averaged over the two sides, and V the
size of the vocabulary, a pair's dispersion is ``H / log V`` in (0, 1]. At 1 the reference is sure of nothing.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..cache.pairs import SIDES, ScoredPair

# Least dispersion, so that a reference that is sure of everything has a finite coefficient.
_FLOOR = 1e-4


def mean_entropies(pair: ScoredPair) -> list[float]:
    """The reference's mean entropy over the tokens of chosen, and of rejected, in nats.

    Raises:
        ValueError: the pair was read without its entropies.
    """
    return [_mean(pair.side(side).ref_entropy) for side in SIDES]


def _mean(entropy: np.ndarray | None) -> float:
    if entropy is None:
        raise ValueError("the pair was read without ref_entropy")
    return float(entropy.mean(dtype=np.float64))


def negative_log_dispersion(entropy: Tensor, vocab_size: int) -> Tensor:
    """``-log(H / log V)`` [B], 0 or more, of the mean entropies [B, 2] of chosen and rejected, in nats."""
    dispersion = (entropy.mean(-1) / math.log(vocab_size)).clamp(_FLOOR, 1.0)
    return -torch.log(dispersion)
