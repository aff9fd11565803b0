"""Whose samples a judge likes better, prompt by prompt."""

import numpy as np

from .calibration import half_ties


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How often each of ours scores above theirs, float64 [P, S] in [0, 1]; a tie is half a win.

    Each of a prompt's samples meets each of the other's: the order of samples does not matter, and the mean
    over all is the win rate.

    Args:
        ours: [P, S] scores of S samples of P prompts.
        theirs: [P, R] scores of R samples of another model, or of one given completion, of these prompts.
    """
    return half_ties(ours[:, :, None] - theirs[:, None, :]).mean(2)
