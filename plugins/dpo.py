"""DPO: Direct Preference Optimization, with label smoothing (conservative DPO)."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class DPO(MarginObjective):
    """Raise the chosen completion's log-ratio over the rejected one's.

    Rafailov et al., arXiv 2305.18290, Eq. 7. Label smoothing: Mitchell, "A note on DPO with noisy
    preferences & relationship to IPO", Eq. 3: the labels are taken to be flipped with that probability.
    """

    paper: ClassVar[str] = "arXiv 2305.18290"
    formula: ClassVar[str] = (
        "-(1-e) log sigmoid(beta*D) - e log sigmoid(-beta*D),  D = sum log_ratio(chosen) - (rejected)"
    )

    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, le=0.5)
    reference_free: bool = hyperparameter(False, "leave the reference out (a uniform one)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing == 0.5:
            warnings.warn("label_smoothing=0.5 leaves no preference signal in the loss", stacklevel=2)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta * (R_chosen - R_rejected)`` [B]."""
        return self.reward(chosen) - self.reward(rejected)

    def link(self, margin: Tensor) -> Tensor:
        """Smoothed ``-log sigmoid`` [B]."""
        e = self.label_smoothing
        return -(1 - e) * F.logsigmoid(margin) - e * F.logsigmoid(-margin)

    def reward(self, side: Completions) -> Tensor:
        """``beta * sum_t log_ratio`` [B]; of log pi alone when ``reference_free``."""
        return self.beta * side.sum(side.logp if self.reference_free else side.log_ratio)
