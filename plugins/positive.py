"""DPO that does not win by making both completions unlikely."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class DPOP(MarginObjective):
    """DPO with a penalty where the chosen completion becomes less likely than under the reference.

    Pal et al., arXiv 2402.13228 ("Smaug").
    """

    paper: ClassVar[str] = "arXiv 2402.13228"
    formula: ClassVar[str] = "-log sigmoid(beta*(D - lam*max(0, -R_chosen)))"
    watch: ClassVar[str] = (
        "``rewards/chosen`` stays about 0 or above. With lam = 50 every nat that it falls below costs "
        "fifty: ``loss`` and ``grad_norm`` that jump are that penalty; lower the learning rate, or lam."
    )

    beta: float = hyperparameter(0.3, "strength of the pull towards the reference", gt=0)
    lam: float = hyperparameter(50.0, "weight of the penalty", ge=0)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta * (D - lam*max(0, -R_chosen))`` [B]."""
        fallen = (-chosen.sum(chosen.log_ratio)).clamp(min=0)
        return super().margin(chosen, rejected) - self.beta * self.lam * fallen


@dataclass(frozen=True)
class MinorDPO(MarginObjective):
    """DPO that lets go of a rejected completion once it is less likely than under the reference.

    Xie et al., arXiv 2408.09834. At the start R_rejected is 0 up to rounding; at exactly 0 it still has
    its gradient.
    """

    paper: ClassVar[str] = "arXiv 2408.09834"
    formula: ClassVar[str] = "-log sigmoid(beta*(R_chosen - max(0, R_rejected)))"
    watch: ClassVar[str] = (
        "``rewards/rejected`` stops falling soon below 0, so that ``rewards/margins`` must come from "
        "``rewards/chosen``; where neither moves, the data asks for dpo."
    )

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta * (R_chosen - max(0, R_rejected))`` [B]."""
        a, b = self.rewards(chosen, rejected)
        # clamp, not relu or maximum: their subgradients at 0 differ.
        return a - b.clamp(min=0)
