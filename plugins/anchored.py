"""Losses that say where each side's own reward goes, not only how far apart the two are."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, Objective, PairLoss, hyperparameter


@dataclass(frozen=True)
class _Anchored(Objective):
    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The loss of the two rewards, ``beta * sum_t log_ratio`` each."""
        a, b = (self.beta * side.sum(side.log_ratio) for side in (chosen, rejected))
        return PairLoss(self.loss(a, b), a.detach(), b.detach())

    @abstractmethod
    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """Loss [B] of the rewards [B] of chosen and rejected."""


@dataclass(frozen=True)
class APOZero(_Anchored):
    """Chosen up and rejected down, each from the reference: for chosen better than what the policy writes.

    D'Oosterlinck et al., arXiv 2408.06266, Eq. 7.
    """

    paper: ClassVar[str] = "arXiv 2408.06266"
    formula: ClassVar[str] = "1 - sigmoid(beta*R_chosen) + sigmoid(beta*R_rejected)"

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """APO-zero [B]."""
        return (-a).sigmoid() + b.sigmoid()


@dataclass(frozen=True)
class APODown(_Anchored):
    """Both down, rejected further: for a policy that already writes better than the chosen completions.

    D'Oosterlinck et al., arXiv 2408.06266, Eq. 8.
    """

    paper: ClassVar[str] = "arXiv 2408.06266"
    formula: ClassVar[str] = "sigmoid(beta*R_chosen) + 1 - sigmoid(beta*D)"

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """APO-down [B]."""
        return a.sigmoid() + (b - a).sigmoid()


@dataclass(frozen=True)
class NCAPair(_Anchored):
    """Noise-contrastive alignment of a pair: keeps the chosen completion's own likelihood from falling.

    Chen et al., arXiv 2402.05369.
    """

    paper: ClassVar[str] = "arXiv 2402.05369"
    formula: ClassVar[str] = "-log sigmoid(a) - log sigmoid(-a)/2 - log sigmoid(-b)/2,  a, b = beta*R"

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """NCA [B]."""
        return -F.logsigmoid(a) - 0.5 * (F.logsigmoid(-a) + F.logsigmoid(-b))


@dataclass(frozen=True)
class BCOPair(_Anchored):
    """Chosen and rejected told apart by their rewards, shifted by a constant.

    Jung et al., arXiv 2404.04656. The paper's shift is the running mean of all rewards: ``bco_batch`` takes
    the batch's.
    """

    paper: ClassVar[str] = "arXiv 2404.04656"
    formula: ClassVar[str] = "-log sigmoid(beta*R_chosen - d) - log sigmoid(-(beta*R_rejected - d))"

    reward_shift: float = hyperparameter(0.0, "d: what divides good rewards from bad ones")

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """BCO [B]."""
        return -F.logsigmoid(a - self.reward_shift) - F.logsigmoid(self.reward_shift - b)
