"""Squared losses: log-ratios pulled to a target, which bounds how far they are driven apart."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, MarginObjective, Objective, PairLoss, hyperparameter


@dataclass(frozen=True)
class IPO(MarginObjective):
    """The margin pulled to 1 / (2 beta): no reward for a larger one.

    Azar et al., arXiv 2310.12036, Eq. 17. The paper sums log-ratios over tokens; released trainers take
    means, which their authors confirmed, and so does the default.
    """

    paper: ClassVar[str] = "arXiv 2310.12036"
    formula: ClassVar[str] = "(D - 1/(2 beta))^2,  D = mean log_ratio(chosen) - mean log_ratio(rejected)"
    watch: ClassVar[str] = (
        "``loss`` starts at (1/(2 beta))^2 and falls towards the spread of the pairs; it never gets near 0. "
        "``rewards/margins`` is of sums, whatever the loss takes; it levels off, and one that goes on "
        "growing asks for a larger beta."
    )

    length_normalise: bool = hyperparameter(True, "means over tokens; false: sums, as the paper writes it")

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """D [B], in nats."""
        over = Completions.mean if self.length_normalise else Completions.sum
        return over(chosen, chosen.log_ratio) - over(rejected, rejected.log_ratio)

    def link(self, margin: Tensor) -> Tensor:
        """Squared distance from the target [B]."""
        return (margin - 1 / (2 * self.beta)).square()


@dataclass(frozen=True)
class SPPO(Objective):
    """Each side's log-ratio pulled to what its probability of winning asks for.

    Wu et al., arXiv 2405.00675, Eq. 4.7; ``beta`` is the paper's 1/eta. With hard labels the chosen side's
    target is 1/(2 beta), the rejected one's its negative.
    """

    paper: ClassVar[str] = "arXiv 2405.00675"
    formula: ClassVar[str] = "(R_chosen - (p_chosen - 1/2)/beta)^2 + (R_rejected - (p_rejected - 1/2)/beta)^2"
    watch: ClassVar[str] = (
        "``loss`` starts at 1/(2 beta^2), half a million by default, and ``grad_norm`` is clipped at every "
        "step: only their trend counts. ``logps/chosen`` should rise; where both sides fall, lower the "
        "learning rate."
    )

    beta: float = hyperparameter(1e-3, "1/eta of the paper", gt=0)
    p_chosen: float = hyperparameter(1.0, "probability that chosen wins", ge=0, le=1)
    p_rejected: float = hyperparameter(0.0, "probability that rejected wins", ge=0, le=1)
    half: bool = hyperparameter(False, "half the loss, as in the official code")

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The sum of both squares."""
        a, b = chosen.sum(chosen.log_ratio), rejected.sum(rejected.log_ratio)
        loss = (a - (self.p_chosen - 0.5) / self.beta).square()
        loss = loss + (b - (self.p_rejected - 0.5) / self.beta).square()
        return PairLoss(loss * (0.5 if self.half else 1.0), self.beta * a.detach(), self.beta * b.detach())


@dataclass(frozen=True)
class CalDPO(Objective):
    """DPO at beta = 1, calibrated: both log-ratios are pulled to the rewards that the labels stand for.

    Xiao et al., arXiv 2412.14516.
    """

    paper: ClassVar[str] = "arXiv 2412.14516"
    formula: ClassVar[str] = "-log sigmoid(D) + (R_chosen - 1/(2 beta))^2 + (R_rejected + 1/(2 beta))^2"
    watch: ClassVar[str] = (
        "``loss`` starts at 1/(2 beta^2), half a million by default, and ``grad_norm`` is clipped at every "
        "step: only their trend counts. ``rewards/chosen`` should rise towards 1/2 and ``rewards/rejected`` "
        "fall towards -1/2."
    )

    beta: float = hyperparameter(1e-3, "half the inverse of the calibrated reward", gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The preference term and both calibration terms."""
        a, b, target = chosen.sum(chosen.log_ratio), rejected.sum(rejected.log_ratio), 1 / (2 * self.beta)
        loss = -F.logsigmoid(a - b) + (a - target).square() + (b + target).square()
        return PairLoss(loss, self.beta * a.detach(), self.beta * b.detach())
