"""The hinge loss on DPO's margin."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tdpo import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class Hinge(MarginObjective):
    """Push a pair apart until its margin reaches the target, then leave it alone.

    DPO's margin under a hinge in place of the logistic loss: a pair beyond the target has no gradient, where
    DPO goes on pulling for ever. Liu et al., arXiv 2309.06657 (its hinge-norm loss, with target = 1).
    """

    paper: ClassVar[str] = "arXiv 2309.06657"
    formula: ClassVar[str] = "max(0, target - beta*D),  D = sum log_ratio(chosen) - (rejected)"

    target: float = hyperparameter(1.0, "margin from which on a pair asks for nothing more", gt=0)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta * D`` [B], D in nats."""
        return self.reward(chosen) - self.reward(rejected)

    def link(self, margin: Tensor) -> Tensor:
        """``max(0, target - margin)`` [B]."""
        return (self.target - margin).clamp(min=0)
