"""WPO (Zhou et al., arXiv 2406.11827): pairs that the policy itself could have written count for more."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.objective import Completions, Objective, PairLoss, hyperparameter, logistic_loss
from ..core.weighting import Weighting

_CLAMP_HELP = "weights of 1 at most, as officially released; false: as other trainers have it"


@dataclass(frozen=True)
class LikelyPairs(Weighting):
    """Weigh a pair's loss by how likely the policy finds its tokens, against its own draws.

    Per side the mean over tokens of ``log pi(y_t) - log sum_v pi(v)^2``; the exponential of both sides' sum.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"log_collision"})
    paper: ClassVar[str] = "arXiv 2406.11827"
    formula: ClassVar[str] = "loss * min(1, exp(sum over sides of mean_t (log pi(y_t) - log sum_v pi(v)^2)))"
    watch: ClassVar[str] = (
        "``weights/loss`` is how much of the pairs counts: near 0 the policy could not have written them "
        "and learns little; where it falls as training goes on, the policy leaves its data."
    )

    clamp: bool = hyperparameter(True, _CLAMP_HELP)

    def loss_weight(self, chosen: Completions, rejected: Completions) -> Tensor:
        """The weight [B]."""
        likely = [side.mean(side.logp) - side.mean(side.log_collision) for side in (chosen, rejected)]
        total = likely[0] + likely[1]
        return (total.clamp(max=0) if self.clamp else total).exp()


@dataclass(frozen=True)
class WPO(Objective):
    """DPO on pairs weighted by how likely the policy finds them.

    arXiv 2406.11827, Eq. 2; the weight sends no gradient. The same as ``dpo`` with the weighting ``wpo``.
    """

    needs: ClassVar[frozenset[str]] = LikelyPairs.needs
    paper: ClassVar[str] = "arXiv 2406.11827"
    formula: ClassVar[str] = (
        "w * (-log sigmoid(beta*D)),  w = min(1, exp(sum of both sides' mean relative logp))"
    )
    watch: ClassVar[str] = (
        "``weights/loss`` is how much of the pairs counts: near 0 the policy could not have written them "
        "and learns little. ``loss`` has that weight in it: judge by ``rewards/accuracies``."
    )

    beta: float = hyperparameter(0.01, "strength of the pull towards the reference", gt=0)
    clamp: bool = hyperparameter(True, _CLAMP_HELP)
    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The weighted loss."""
        with torch.no_grad():
            weight = LikelyPairs(clamp=self.clamp).loss_weight(chosen, rejected)
        a, b = (self.beta * side.sum(side.log_ratio) for side in (chosen, rejected))
        loss = weight * logistic_loss(a - b, self.label_smoothing)
        return PairLoss(loss, a.detach(), b.detach(), {"weights/loss": weight})
