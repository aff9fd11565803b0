"""TIS-DPO (Liu et al., arXiv 2410.04350): tokens weighted by how much they are to be preferred.

A contrastive pair of models, one trained towards what is preferred and one towards what is rejected, scores
the completions' tokens once (``tdpo cache add --positive MODEL --negative MODEL``); with
``a_t = log positive(y_t) - log negative(y_t)`` the weighting makes weights of what is cached.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.objective import Completions, MarginObjective, hyperparameter
from ..core.weighting import Weighting


@dataclass(frozen=True)
class TISDPO(MarginObjective):
    """DPO on weighted tokens; with eta, less the weighted reverse KL of both sides.

    arXiv 2410.04350, Eqs. 16-17: eta = 1 as in the paper, 0 as the released code runs, 0.5 its option. The
    KL's gradient flows, which raises it on the rejected side. The weights come from a weighting.
    """

    paper: ClassVar[str] = "arXiv 2410.04350"
    formula: ClassVar[str] = (
        "-log sigmoid(u_chosen - u_rejected),  u = beta*sum_t w_t (log_ratio_t - eta*KL_t)"
    )
    watch: ClassVar[str] = (
        "``rewards/margins`` is of weighted tokens: compare ``rewards/accuracies`` on held-out pairs with a "
        "run whose weights are transform=random. With eta ``kl/rejected`` rises on purpose; where it runs "
        "away, lower eta."
    )

    eta: float = hyperparameter(0.0, "weight of the reverse KL, KL(pi || ref)", ge=0)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Token weights and, with eta, the reverse KL."""
        return frozenset({"token_weight", "reverse_kl"} if self.eta else {"token_weight"})

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``u_chosen - u_rejected`` [B]."""
        return self._share(chosen, self.eta) - self._share(rejected, self.eta)

    def reward(self, side: Completions) -> Tensor:
        """``beta * sum_t w_t log_ratio_t`` [B], less the weighted KL, unscaled as released, with eta."""
        return self._share(side, 1.0 if self.eta else 0.0)

    def _share(self, side: Completions, eta: float) -> Tensor:
        if side.token_weight is None:
            raise ValueError("tis_dpo weighs tokens: add a weighting that gives token weights, such as tis")
        total = side.sum(side.log_ratio)
        if eta:
            assert side.reverse_kl is not None
            total = total - eta * side.sum(side.token_weight * side.reverse_kl)
        return self.beta * total


@dataclass(frozen=True)
class TIS(Weighting):
    """Weigh tokens by a contrastive pair of models.

    arXiv 2410.04350, Eq. 19: ``k exp(+-mu clip(a_t, low, high))``, + on chosen and - on rejected. The
    released code has no exponential: its transforms take a signed score, a_t on chosen, -a_t on rejected.
    ``threshold`` and ``origin`` give weights of either sign. ``random`` takes no score: weights drawn between
    least and most, by pair and epoch, are what the others are to be compared with.
    """

    paper: ClassVar[str] = "arXiv 2410.04350"
    formula: ClassVar[str] = "w_t = k*exp(+-mu*clip(log positive(y_t) - log negative(y_t), low, high))"
    watch: ClassVar[str] = (
        "``rewards/accuracies`` on held-out pairs against those of transform=random tell what the scores "
        "are worth. Transforms with negative weights push good tokens down: ``logps/chosen`` that falls "
        "fast is theirs."
    )

    transform: str = hyperparameter(
        "exponential",
        "how a score becomes a weight: the paper's exponential, or one of the released code's",
        choices=(
            *("exponential", "rank_based", "threshold_and_scale", "threshold", "binary", "origin", "random"),
        ),
    )
    k: float = hyperparameter(1.0, "factor of the exponential", gt=0)
    mu: float = hyperparameter(1.0, "slope of the exponential", ge=0)
    low: float | None = hyperparameter(
        None,
        "least score, before the transform; -0.5 (exponential), -1.5 (threshold_and_scale), -1 (threshold)",
    )
    high: float | None = hyperparameter(None, "largest score; 1.5 (both), 1 (threshold)")
    least: float = hyperparameter(0.7, "smallest weight of rank_based, threshold_and_scale and random")
    most: float = hyperparameter(1.3, "largest weight of rank_based, threshold_and_scale and random")
    top_percent: float = hyperparameter(100.0, "share of tokens that binary keeps", ge=0, le=100)
    eos_weight: float | None = hyperparameter(
        None, "weight of a completion's last token; 0 as released, by the transform when not given"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self._bounds()
        if not low < high:
            raise ConfigError(f"tis: low={low:g} must be below high={high:g}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Both models' log-probabilities; something to draw from where weights are random."""
        if self.transform == "random":
            return frozenset({"draw_seed"})
        return frozenset({"positive_logp", "negative_logp"})

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        return self._weights(chosen, 1.0), self._weights(rejected, -1.0)

    def _bounds(self) -> tuple[float, float]:
        low, high = {"threshold": (-1.0, 1.0), "threshold_and_scale": (-1.5, 1.5)}.get(
            self.transform, (-0.5, 1.5)
        )
        return (low if self.low is None else self.low, high if self.high is None else self.high)

    def _weights(self, side: Completions, sign: float) -> Tensor:
        weight = self._drawn(side) if self.transform == "random" else self._scored(side, sign)
        if self.eos_weight is not None:
            last = torch.arange(side.mask.shape[1], device=weight.device) == (side.length - 1)[:, None]
            weight = torch.where(last, self.eos_weight, weight)
        return weight

    def _drawn(self, side: Completions) -> Tensor:
        return self.least + (self.most - self.least) * side.uniform("tis")

    def _scored(self, side: Completions, sign: float) -> Tensor:
        advantage = side.added("positive_logp") - side.added("negative_logp")
        # What padding holds is no one's business, NaN included.
        advantage = torch.where(side.mask, advantage, 0.0)
        low, high = self._bounds()
        if self.transform == "exponential":
            return self.k * (sign * self.mu * advantage.clamp(low, high)).exp()
        return self._released(sign * advantage, side.mask, low, high)

    def _released(self, score: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
        """One of the released code's transforms of the signed scores [B, T]."""
        if self.transform == "origin":
            return score
        if self.transform == "threshold":
            return score.clamp(low, high)
        if self.transform == "threshold_and_scale":
            return self.least + (score.clamp(low, high) - low) * (self.most - self.least) / (high - low)
        length = mask.sum(-1, keepdim=True)
        if self.transform == "binary":
            kept = (length * self.top_percent / 100).to(torch.int64)
            # Of equal scores that straddle the cut none is kept, as released.
            at_least = ((score[:, None, :] >= score[:, :, None]) & mask[:, None, :]).sum(-1)
            return (at_least <= kept).to(score.dtype)
        order = torch.where(mask, score, torch.inf).argsort(dim=-1, stable=True)
        rank = order.argsort(-1).to(score.dtype)
        spread = self.least + (self.most - self.least) * rank / (length - 1).clamp(min=1)
        return torch.where(length > 1, spread, 1.0)
