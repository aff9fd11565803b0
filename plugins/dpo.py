"""DPO, and the losses of the same margin that expect some labels to be wrong."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter, logistic_loss


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
    watch: ClassVar[str] = (
        "``rewards/accuracies`` rises above 0.5 and ``rewards/margins`` grows. ``logps/chosen`` may fall "
        "with ``logps/rejected``; where it falls fast, or ``kl/chosen`` runs away, raise beta, lower the "
        "learning rate, or add sft=0.1."
    )

    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, le=0.5)
    reference_free: bool = hyperparameter(False, "leave the reference out (a uniform one)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing == 0.5:
            warnings.warn("label_smoothing=0.5 leaves no preference signal in the loss", stacklevel=2)

    def link(self, margin: Tensor) -> Tensor:
        """Smoothed ``-log sigmoid`` [B]."""
        return logistic_loss(margin, self.label_smoothing)

    def reward(self, side: Completions) -> Tensor:
        """``beta * sum_t log_ratio`` [B]; of log pi alone when ``reference_free``."""
        return self.beta * side.sum(side.logp if self.reference_free else side.log_ratio)


@dataclass(frozen=True)
class RobustDPO(MarginObjective):
    """DPO's loss without the bias that flipped labels give it.

    Chowdhury et al., arXiv 2403.00409. Its mean over flips at the rate e is DPO's loss on the true labels;
    so it can be negative, and has no lower bound.
    """

    paper: ClassVar[str] = "arXiv 2403.00409"
    formula: ClassVar[str] = "(-(1-e) log sigmoid(z) + e log sigmoid(-z)) / (1-2e),  z = beta*D"
    watch: ClassVar[str] = (
        "``loss`` goes below 0 and has no lower bound: judge by ``rewards/accuracies`` on held-out pairs, "
        "near 1 - label_smoothing where labels are as noisy as assumed."
    )

    label_smoothing: float = hyperparameter(0.1, "rate e at which labels are flipped", ge=0, lt=0.5)

    def link(self, margin: Tensor) -> Tensor:
        """The unbiased loss [B]."""
        e = self.label_smoothing
        return (-(1 - e) * F.logsigmoid(margin) + e * F.logsigmoid(-margin)) / (1 - 2 * e)


@dataclass(frozen=True)
class EXOPair(MarginObjective):
    """Reverse KL from the policy's preference to the label's, where DPO takes the forward one.

    Ji et al., arXiv 2402.00856, Eq. 16 for two completions: KL((p, 1-p) || (1-e, e)), p = sigmoid(beta*D).
    The label must leave some probability to the rejected side: at e = 0 the loss is infinite.
    """

    paper: ClassVar[str] = "arXiv 2402.00856"
    formula: ClassVar[str] = "p log(p / (1-e)) + (1-p) log((1-p) / e),  p = sigmoid(beta*D)"
    watch: ClassVar[str] = (
        "``loss`` starts at 2.8 with the default label_smoothing and is least at ``rewards/margins`` of "
        "log((1-e)/e), 6.9: beyond that it rises. A pair ranked very wrongly has almost no gradient, so "
        "that ``rewards/accuracies`` may stay where a large learning rate put it."
    )

    label_smoothing: float = hyperparameter(1e-3, "probability e that a label is flipped", gt=0, lt=0.5)

    def link(self, margin: Tensor) -> Tensor:
        """The reverse KL [B], in nats."""
        e, log_p, log_rest = self.label_smoothing, F.logsigmoid(margin), F.logsigmoid(-margin)
        return margin.sigmoid() * (log_p - math.log1p(-e)) + (-margin).sigmoid() * (log_rest - math.log(e))
