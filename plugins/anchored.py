"""Losses that say where each side's own reward goes, not only how far apart the two are."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
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
    watch: ClassVar[str] = (
        "``rewards/chosen`` goes above 0 and ``rewards/rejected`` below. ``rewards/chosen`` that will not "
        "rise tells that the policy writes better than the chosen completions: take apo_down."
    )

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
    watch: ClassVar[str] = (
        "``rewards/chosen`` and ``rewards/rejected`` both fall, the latter further: ``rewards/margins`` "
        "grows. ``kl/chosen`` that runs away with them asks for a larger beta."
    )

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
    watch: ClassVar[str] = (
        "``rewards/chosen`` stays at 0 or above, where DPO's often falls; where it does fall, lower the "
        "learning rate. ``rewards/margins`` is smaller than DPO's by design."
    )

    def loss(self, a: Tensor, b: Tensor) -> Tensor:
        """NCA [B]."""
        return -F.logsigmoid(a) - 0.5 * (F.logsigmoid(-a) + F.logsigmoid(-b))


@dataclass(frozen=True)
class BCOPair(Objective):
    """Chosen and rejected told apart by their rewards, shifted by what all rewards of the run average to.

    Jung et al., arXiv 2404.04656. The mean is over both sides of every pair trained on so far, those of the
    optimiser step included, and sends no gradient. It changes once a step, so that neither micro-batches nor
    processes matter; a step of several costs one more forward pass, which ``shift`` = none spares. Outside of
    a fit it is the batch's mean.
    """

    paper: ClassVar[str] = "arXiv 2404.04656"
    formula: ClassVar[str] = (
        "-log sigmoid(a - d) - log sigmoid(-(b - d)),  a, b = beta*R,  d = mean of all a and b so far"
    )
    watch: ClassVar[str] = (
        "``rewards/chosen`` goes above ``bco/shift`` and ``rewards/rejected`` below it. A shift that runs "
        "off to one side tells that both sides move together: raise beta, or lower the learning rate."
    )

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)
    shift: str = hyperparameter(
        "running", "d: the run's mean reward, or none: the constant reward_shift", choices=("running", "none")
    )
    reward_shift: float | None = hyperparameter(
        None, "a constant d, in place of the running mean; 0 with shift=none when not given"
    )

    @property
    def running(self) -> frozenset[str]:  # type: ignore[override]
        """The rewards, where their mean is the shift."""
        constant = self.shift == "none" or self.reward_shift is not None
        return frozenset() if constant else frozenset({"reward"})

    def observe(self, chosen: Completions, rejected: Completions) -> dict[str, Tensor]:
        """The rewards [2B] of both sides."""
        return {"reward": torch.cat(self._rewards(chosen, rejected))}

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The loss of the two shifted rewards."""
        a, b = self._rewards(chosen, rejected)
        if self.running:
            shift = chosen.running.get("reward", torch.cat([a, b]).detach().mean())
        else:
            shift = a.new_tensor(self.reward_shift or 0.0)
        loss = -F.logsigmoid(a - shift) - F.logsigmoid(shift - b)
        return PairLoss(loss, a.detach(), b.detach(), {"bco/shift": shift})

    def _rewards(self, chosen: Completions, rejected: Completions) -> list[Tensor]:
        return [self.beta * side.sum(side.log_ratio) for side in (chosen, rejected)]
