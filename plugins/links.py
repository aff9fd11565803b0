"""DPO's margin under other links: what a pair's margin costs."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.objective import MarginObjective, hyperparameter

# FocalPO, not detached, raises the loss's sign where p < exp(-1 / gamma): here that is p < 0.7 %.
_FOCAL_REVERSES = 0.2


@dataclass(frozen=True)
class Hinge(MarginObjective):
    """No loss once the margin is 1: hinge on the margin relative to the reference.

    What preference trainers offer as "hinge" or "SLiC"; SLiC-HF itself has no reference, see ``slic``.
    """

    paper: ClassVar[str] = "arXiv 2305.10425"
    formula: ClassVar[str] = "max(0, 1 - beta*D),  D = sum log_ratio(chosen) - (rejected)"
    watch: ClassVar[str] = (
        "``loss`` reaches 0 on every pair whose ``rewards/margins`` is 1, and ``grad_norm`` goes with it: "
        "all at 0 early on means that a smaller beta has more to teach."
    )

    def link(self, margin: Tensor) -> Tensor:
        """The hinge [B]; no gradient at the kink."""
        return F.relu(1 - margin)


@dataclass(frozen=True)
class FocalPO(MarginObjective):
    """DPO with less weight on pairs that the policy ranks wrongly.

    arXiv 2501.06645: ``-p^gamma log p`` with p = sigmoid(beta*D). Unless the factor is detached, the gradient
    changes its sign where p < exp(-1/gamma), and for gamma > 1.44 every pair starts there.
    """

    paper: ClassVar[str] = "arXiv 2501.06645"
    formula: ClassVar[str] = "-p^gamma log p,  p = sigmoid(beta*D)"
    watch: ClassVar[str] = (
        "``rewards/accuracies`` rises on pairs that are nearly right; wrongly ranked ones are given up. "
        "``loss`` that falls while ``rewards/accuracies`` falls too is the reversed gradient: set "
        "detach=true or lower gamma."
    )

    gamma: float = hyperparameter(0.05, "how much wrongly ranked pairs are turned down", ge=0)
    detach: bool = hyperparameter(False, "send no gradient through p^gamma")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma > _FOCAL_REVERSES and not self.detach:
            warnings.warn(
                f"gamma={self.gamma:g} turns the gradient round for pairs with p < "
                f"{math.exp(-1 / self.gamma):.2g}; set detach=true, or gamma to {_FOCAL_REVERSES:g} at most",
                stacklevel=2,
            )

    def link(self, margin: Tensor) -> Tensor:
        """The focal loss [B]."""
        log_p = F.logsigmoid(margin)
        factor = (self.gamma * log_p).exp()
        return -(factor.detach() if self.detach else factor) * log_p


@dataclass(frozen=True)
class DiscoPOP(MarginObjective):
    """A link found by a language model: DPO's loss, blended into an exponential one as the margin grows.

    Lu et al., arXiv 2406.08414, Eq. 5: not convex; the gradient flows through the blend.
    """

    paper: ClassVar[str] = "arXiv 2406.08414"
    formula: ClassVar[str] = "-(1-m) log sigmoid(z) + m exp(-z),  m = sigmoid(z / tau),  z = beta*D"
    watch: ClassVar[str] = (
        "Not convex: from 0 the loss first falls towards a negative margin (-0.12 at tau = 0.05, and it is "
        "highest at 0.07). ``rewards/margins`` that settles there, with ``rewards/accuracies`` below 0.5, "
        "has not got over it: raise tau or the learning rate."
    )

    beta: float = hyperparameter(0.05, "strength of the pull towards the reference", gt=0)
    tau: float = hyperparameter(0.05, "width of the blend, in units of the margin", gt=0, le=1)

    def link(self, margin: Tensor) -> Tensor:
        """The blended loss [B]."""
        blend = margin / self.tau
        # m exp(-z) as one exponential: factor by factor it is 0 * inf at very negative margins.
        return -(-blend).sigmoid() * F.logsigmoid(margin) + (F.logsigmoid(blend) - margin).exp()
