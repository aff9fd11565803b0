"""MRPO (Le et al., arXiv 2405.16388): DPO against two references, the second kept near the first."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class MRPO(MarginObjective):
    """DPO whose reference is the weighted harmonic mean of the cache's own and another one.

    The cache's reference is the trusted one; the other is added to it (``tdpo cache add --name second --ref
    MODEL``), and its log-probability is clipped to within (1 +- e) of the trusted one's, e split between the
    sides in proportion to their mean log-probabilities. Weights are adaptive, from each reference's own
    margin. The released code attaches the weights crosswise: ``swap``.
    """

    paper: ClassVar[str] = "arXiv 2405.16388"
    formula: ClassVar[str] = (
        "-log sigmoid(beta*(logp - r | chosen - rejected)),  r = -log(a/ref_2 + (1-a)/ref_1) of a completion"
    )
    watch: ClassVar[str] = (
        "``rewards/margins`` does not start at 0: what it starts at is how the references differ. Where "
        "``rewards/accuracies`` starts far from 0.5, the other reference has decided most pairs already: "
        "lower eta."
    )

    eta: float = hyperparameter(0.1, "how far the other reference may be from the trusted one", ge=0, lt=1)
    alpha: float | None = hyperparameter(
        None, "weight a of the other reference; adaptive when not given", ge=0, le=1
    )
    swap: bool = hyperparameter(False, "weights attached crosswise, as released")
    reference: str = hyperparameter("second", "name of the added scores that hold the other reference")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The other reference's log-probabilities."""
        return frozenset({f"{self.reference}.ref_logp"})

    def rewards(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """``beta * (log pi - log of the combined reference)`` [B] of both sides."""
        (name,) = self.needs
        sides = (chosen, rejected)
        other = [side.sum(side.added(name).to(side.ref_logp.dtype)) for side in sides]
        trusted = [side.sum(side.ref_logp) for side in sides]
        weight = self._weight(other[0] - other[1], trusted[0] - trusted[1])
        means = [(o + t).abs() / 2 for o, t in zip(other, trusted, strict=True)]
        share = means[0] / (means[0] + means[1])
        rewards = []
        for side, o, t, part in zip(sides, other, trusted, (share, 1 - share), strict=True):
            clipped = torch.minimum(torch.maximum(o, t * (1 + self.eta * part)), t * (1 - self.eta * part))
            rewards.append(self.beta * (side.sum(side.logp) - _combined(clipped, t, weight)))
        return rewards[0], rewards[1]

    def _weight(self, other: Tensor, trusted: Tensor) -> Tensor:
        """Weight [B] of the other reference, from both references' margins."""
        if self.alpha is not None:
            weight = torch.full_like(other, self.alpha)
        else:
            weight = other.abs() / (other.abs() + trusted.abs() + 1e-6)
        return 1 - weight if self.swap else weight


def _combined(other: Tensor, trusted: Tensor, weight: Tensor) -> Tensor:
    """``-log(weight / other + (1 - weight) / trusted)`` [B] of log-probabilities."""
    least = torch.finfo(weight.dtype).tiny
    return -torch.logaddexp(
        weight.clamp(min=least).log() - other, (1 - weight).clamp(min=least).log() - trusted
    )
