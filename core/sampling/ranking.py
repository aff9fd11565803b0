"""Pairs of a prompt's scored completions: those whose rewards are far enough apart."""

import math
from collections.abc import Sequence


def far_apart(
    completions: Sequence[str], scores: Sequence[float], *, tau: float, threshold: float, most: int
) -> list[tuple[int, int]]:
    """Places (better, worse) of pairs with ``sigmoid((better - worse) / tau) >= threshold``.

    The rejection of RS-DPO (Khaki et al., arXiv 2402.10038). Those furthest apart come first; equal
    completions make no pair.

    Args:
        completions: of one prompt.
        scores: their rewards.
        tau: scale of the rewards.
        threshold: in [0.5, 1).
        most: pairs at most.
    """
    # sigmoid(x) >= threshold where x >= its logit; a pair in the right order needs a gap above 0.
    least = tau * math.log(threshold / (1 - threshold))
    found = [
        (scores[a] - scores[b], a, b)
        for a in range(len(scores))
        for b in range(len(scores))
        if scores[a] > scores[b] and scores[a] - scores[b] >= least and completions[a] != completions[b]
    ]
    found.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [(a, b) for _, a, b in found[:most]]
