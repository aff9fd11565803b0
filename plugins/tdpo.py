"""TDPO1 and TDPO2: Token-level Direct Preference Optimization (Zeng et al., arXiv 2404.11999).

DPO with the difference of the two sides' sequential forward KL, sum_t KL(ref(.|s_t) || pi(.|s_t)),
rejected minus chosen, taken off the margin.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class TDPO1(MarginObjective):
    """DPO minus the difference of sequential KLs; the gradient flows through both sides' KL.

    arXiv 2404.11999, TDPO1; the released code with ``if_tdpo2: false``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward_kl"})
    paper: ClassVar[str] = "arXiv 2404.11999"
    formula: ClassVar[str] = "-log sigmoid(beta*(D - (KL_rejected - KL_chosen)))"
    watch: ClassVar[str] = (
        "``kl/chosen`` rises, because the loss pays for that; where it runs ahead of ``kl/rejected``, take "
        "tdpo2. Rewards hold the KL: ``rewards/chosen`` can rise while ``logps/chosen`` falls."
    )

    def reward(self, side: Completions) -> Tensor:
        """``beta * (R + sequential KL)`` [B], as in the released code."""
        return self.beta * (side.sum(side.log_ratio) + side.sum(side.forward_kl))


@dataclass(frozen=True)
class TDPO2(MarginObjective):
    """TDPO with the KL difference scaled by alpha and no gradient through the chosen side's KL.

    arXiv 2404.11999, TDPO2. Lowering TDPO1's loss would raise the chosen KL; the stop-gradient prevents
    it. With alpha = 1 the value equals TDPO1's, only the gradient differs; alpha = 0 is DPO.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"forward_kl"})
    paper: ClassVar[str] = "arXiv 2404.11999"
    formula: ClassVar[str] = "-log sigmoid(beta*(D - alpha*(KL_rejected - stop_gradient(KL_chosen))))"
    watch: ClassVar[str] = (
        "``kl/chosen`` and ``kl/rejected`` grow slowly and together, ``kl/margin`` stays near 0: a larger "
        "alpha holds it there. ``rewards/margins`` is the logit only with reward_form=logit."
    )

    alpha: float = hyperparameter(0.5, "weight of the sequential KL difference", ge=0)
    reward_form: str = hyperparameter(
        "code",
        "logged reward: beta*(R + KL) as in the released code, or the logit's own share with alpha",
        choices=("code", "logit"),
    )

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta * (D - alpha * (KL_rejected - sg[KL_chosen]))`` [B]."""
        difference = chosen.sum(chosen.log_ratio) - rejected.sum(rejected.log_ratio)
        kl_chosen, kl_rejected = chosen.sum(chosen.forward_kl), rejected.sum(rejected.forward_kl)
        return self.beta * (difference - self.alpha * (kl_rejected - kl_chosen.detach()))

    def reward(self, side: Completions) -> Tensor:
        """``beta * (R + KL)`` [B] (``code``), or ``beta * (R + alpha * KL)`` (``logit``)."""
        weight = 1.0 if self.reward_form == "code" else self.alpha
        return self.beta * (side.sum(side.log_ratio) + weight * side.sum(side.forward_kl))
