"""f-DPO: DPO under other divergences from the reference than the reverse KL."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class FDPO(MarginObjective):
    """A completion's reward is the derivative of the divergence's generator at its likelihood ratio.

    Wang et al., arXiv 2309.16240. With u = exp(R), the ratio of the whole completion: ``reverse_kl`` R, which
    is DPO; ``forward_kl`` -1/u; ``js`` log 2 + log sigmoid(R); ``alpha`` -u^-alpha / alpha. Where an
    exponential would leave the numbers' range it goes on as a straight line, so that all stays finite.
    """

    paper: ClassVar[str] = "arXiv 2309.16240"
    formula: ClassVar[str] = "-log sigmoid(beta*(f'(u_chosen) - f'(u_rejected))),  u = exp(R)"
    watch: ClassVar[str] = (
        "With forward_kl the reward is -exp(-R): ``rewards/chosen`` and ``rewards/rejected`` of huge size, "
        "and a ``grad_norm`` that jumps, tell of completions that became much less likely than under the "
        "reference; lower the learning rate, or take alpha or js, whose rewards grow less."
    )

    divergence: str = hyperparameter(
        "reverse_kl",
        "divergence from the reference",
        choices=("reverse_kl", "forward_kl", "js", "alpha"),
    )
    alpha: float = hyperparameter(
        0.5, "of the alpha divergence: towards 0 the reverse KL, towards 1 the forward one", gt=0, lt=1
    )

    def reward(self, side: Completions) -> Tensor:
        """``beta * f'(u)`` [B]."""
        ratio = side.sum(side.log_ratio)
        if self.divergence == "forward_kl":
            ratio = -_exp(-ratio)
        elif self.divergence == "js":
            ratio = math.log(2) + F.logsigmoid(ratio)
        elif self.divergence == "alpha":
            ratio = -_exp(-self.alpha * ratio) / self.alpha
        return self.beta * ratio


def _exp(x: Tensor) -> Tensor:
    """exp, a straight line from the square root of the largest number on."""
    most = math.log(torch.finfo(x.dtype).max) / 2
    return x.clamp(max=most).exp() * (1 + (x - most).clamp(min=0))
