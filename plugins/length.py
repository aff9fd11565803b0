"""DPO with another weight for length: means, penalties, and tokens that count for less."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.objective import Completions, MarginObjective, hyperparameter
from ..core.weighting import Weighting


@dataclass(frozen=True)
class DPONorm(MarginObjective):
    """DPO on mean log-ratios, so that a completion's length carries no reward.

    The length-normalised loss of the Tulu 3 recipe.
    """

    paper: ClassVar[str] = "arXiv 2411.15124"
    formula: ClassVar[str] = "-log sigmoid(beta*(mean log_ratio(chosen) - mean log_ratio(rejected)))"
    watch: ClassVar[str] = (
        "``rewards/margins`` is of means over tokens, times a beta of that scale: it grows as DPO's does. "
        "``logps/rejected``, a sum, may still fall far on long completions."
    )

    beta: float = hyperparameter(5.0, "strength of the pull towards the reference, per token", gt=0)

    def reward(self, side: Completions) -> Tensor:
        """``beta * mean_t log_ratio`` [B]."""
        return self.beta * side.mean(side.log_ratio)


@dataclass(frozen=True)
class RDPO(MarginObjective):
    """DPO with a margin that a longer chosen completion gets for free.

    Park et al., arXiv 2403.19159: the reward beta*R + alpha*T, whose length part the policy need not learn.
    """

    paper: ClassVar[str] = "arXiv 2403.19159"
    formula: ClassVar[str] = "-log sigmoid(beta*D + alpha*(T_chosen - T_rejected))"
    watch: ClassVar[str] = (
        "``loss`` starts at log 2 only where lengths are equal. Completions that get shorter and shorter "
        "(--samples shows them) tell that alpha is too large, longer and longer that it is too small."
    )

    alpha: float = hyperparameter(0.01, "margin of a token of difference in length")

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta*D + alpha*(T_chosen - T_rejected)`` [B]."""
        margin = super().margin(chosen, rejected)
        return margin + self.alpha * (chosen.length - rejected.length).to(margin.dtype)


@dataclass(frozen=True)
class LDDPO(MarginObjective):
    """DPO in which tokens past the shorter completion's length count for less.

    Liu et al., arXiv 2409.06411. alpha = 1 is DPO, alpha = 0 compares equal lengths only.
    """

    paper: ClassVar[str] = "arXiv 2409.06411"
    formula: ClassVar[str] = "-log sigmoid(beta*D'),  R' = sum_{t<=m} log_ratio + alpha*sum_{t>m},  m = min T"
    watch: ClassVar[str] = (
        "``rewards/margins`` grows more slowly than DPO's where lengths differ. Completions that go on "
        "growing (--samples shows them) ask for a smaller alpha, ones that never end for a larger."
    )

    alpha: float = hyperparameter(0.5, "weight of the tokens past the shorter length", ge=0, le=1)

    def rewards(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """``beta * R'`` [B] of both sides."""
        weights = PastShorter(self.alpha).token_weights(chosen, rejected)
        return _weighed_rewards(self.beta, weights, chosen, rejected)


@dataclass(frozen=True)
class PastShorter(Weighting):
    """Weigh tokens past the shorter completion's length less.

    The weights of ``ld_dpo`` (arXiv 2409.06411), for any margin.
    """

    paper: ClassVar[str] = "arXiv 2409.06411"
    formula: ClassVar[str] = "w_t = 1 for t <= m, else alpha,  m = min T"
    watch: ClassVar[str] = (
        "``rewards/margins`` grows more slowly than without where lengths differ. At alpha = 0 nothing "
        "teaches a policy to end a long completion: --samples shows whether it still does."
    )

    alpha: float = hyperparameter(0.5, "weight of the tokens past the shorter length", ge=0, le=1)

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        shorter = torch.minimum(chosen.length, rejected.length)[:, None]
        a, b = (_past(token_places(side) < shorter, self.alpha, _wide(side)) for side in (chosen, rejected))
        return a, b


@dataclass(frozen=True)
class SamPO(MarginObjective):
    """DPO on as many tokens of either side: of the longer completion some are drawn, anew in each epoch.

    Lu et al., arXiv 2406.10957. The draw is one for the policy and its reference, so that a log-ratio is of
    one token; the released code draws for each by itself. It depends on the pair, the epoch and the run's
    seed alone; an evaluation always has the same. ``expected`` takes the draw's mean: no variance.
    """

    paper: ClassVar[str] = "arXiv 2406.10957"
    formula: ClassVar[str] = "-log sigmoid(beta*D'),  R' = sum of log_ratio over m = min T drawn tokens"
    watch: ClassVar[str] = (
        "``rewards/margins`` is of the drawn tokens, noisier than DPO's where lengths differ much; where "
        "``loss`` does not settle for that, expected=true has the same mean without the noise."
    )

    expected: bool = hyperparameter(False, "the mean over draws, m / T times the sum, in place of one draw")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Something to draw from, unless the mean over draws is taken."""
        return Drawn(self.expected).needs

    def rewards(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """``beta * R'`` [B] of both sides."""
        weights = Drawn(self.expected).token_weights(chosen, rejected)
        return _weighed_rewards(self.beta, weights, chosen, rejected)


@dataclass(frozen=True)
class Drawn(Weighting):
    """Count as many tokens of either side: of the longer completion some are drawn, anew in each epoch.

    The weights of ``sampo`` (arXiv 2406.10957), for any margin.
    """

    paper: ClassVar[str] = "arXiv 2406.10957"
    formula: ClassVar[str] = "w_t = 1 for m = min T drawn tokens, else 0"
    watch: ClassVar[str] = (
        "``rewards/margins`` is noisier than without where lengths differ much; where ``loss`` does not "
        "settle for that, expected=true has the same mean without the noise."
    )

    expected: bool = hyperparameter(False, "the mean over draws, m / T at each token, in place of one draw")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Something to draw from, unless the mean over draws is taken."""
        return frozenset() if self.expected else frozenset({"draw_seed"})

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        least = torch.minimum(chosen.length, rejected.length)[:, None]
        return self._weights(chosen, least), self._weights(rejected, least)

    def _weights(self, side: Completions, least: Tensor) -> Tensor:
        if self.expected:
            share = least.to(_wide(side)) / side.length[:, None]
            return share.expand(side.mask.shape)
        keys = torch.where(side.mask, side.uniform("sampo"), torch.inf)
        # Of equal keys the earlier token goes first, on any device.
        ranks = keys.argsort(dim=-1, stable=True).argsort(-1)
        return (ranks < least).to(_wide(side))


@dataclass(frozen=True)
class D2PODecay(MarginObjective):
    """DPO in which a token counts for less the later it comes.

    Shao et al., arXiv 2502.14340. ``start`` = 1 is the released code, which comes to another beta.
    """

    paper: ClassVar[str] = "arXiv 2502.14340"
    formula: ClassVar[str] = "-log sigmoid(beta*D'),  R' = sum_t gamma^(t + start) log_ratio_t,  t from 0"
    watch: ClassVar[str] = (
        "``rewards/margins`` is of the first tokens mostly: about 1/(1 - gamma) of them. ``kl/chosen`` that "
        "runs away on long completions is that of tokens which the loss hardly sees."
    )

    gamma: float = hyperparameter(0.98, "weight of a token over that of the one before", gt=0, le=1)
    start: int = hyperparameter(0, "exponent of the first token", ge=0)

    def reward(self, side: Completions) -> Tensor:
        """``beta * R'`` [B]."""
        return self.beta * side.sum(_decay(side, self.gamma, self.start) * side.log_ratio)


@dataclass(frozen=True)
class Decay(Weighting):
    """Weigh a token less the later it comes.

    The weights of ``d2po_decay`` (arXiv 2502.14340), for any margin.
    """

    paper: ClassVar[str] = "arXiv 2502.14340"
    formula: ClassVar[str] = "w_t = gamma^(t + start),  t from 0"
    watch: ClassVar[str] = (
        "``rewards/margins`` is of the first tokens mostly: about 1/(1 - gamma) of them. Where it hardly "
        "grows, the preference is decided later: raise gamma."
    )

    gamma: float = hyperparameter(0.98, "weight of a token over that of the one before", gt=0, le=1)
    start: int = hyperparameter(0, "exponent of the first token", ge=0)

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        return _decay(chosen, self.gamma, self.start), _decay(rejected, self.gamma, self.start)


def _decay(side: Completions, gamma: float, start: int) -> Tensor:
    return torch.pow(gamma, token_places(side).to(_wide(side)) + start)


def _past(kept: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """1 where ``kept``, alpha elsewhere."""
    ones = torch.ones_like(kept, dtype=dtype)
    return torch.where(kept, ones, alpha * ones)


def _wide(side: Completions) -> torch.dtype:
    """Of weights: bfloat16 could not tell places past 256 apart."""
    return torch.promote_types(side.logp.dtype, torch.float32)


def _weighed_rewards(
    beta: float, weights: tuple[Tensor, Tensor], chosen: Completions, rejected: Completions
) -> tuple[Tensor, Tensor]:
    """``beta * sum_t w_t log_ratio_t`` [B] of both sides."""
    a, b = (
        beta * side.sum(weight * side.log_ratio)
        for weight, side in zip(weights, (chosen, rejected), strict=True)
    )
    return a, b


def token_places(side: Completions) -> Tensor:
    """Place [B, T] of each completion token in its completion, from 0."""
    return torch.arange(side.mask.shape[1], device=side.mask.device).expand_as(side.mask)
