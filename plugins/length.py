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

    alpha: float = hyperparameter(0.5, "weight of the tokens past the shorter length", ge=0, le=1)

    def rewards(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """``beta * R'`` [B] of both sides."""
        shorter = torch.minimum(chosen.length, rejected.length)[:, None]
        rewards = []
        for side in (chosen, rejected):
            ratio = side.log_ratio
            kept = torch.where(token_places(side) < shorter, ratio, self.alpha * ratio)
            rewards.append(self.beta * side.sum(kept))
        return rewards[0], rewards[1]


@dataclass(frozen=True)
class D2PODecay(MarginObjective):
    """DPO in which a token counts for less the later it comes.

    Shao et al., arXiv 2502.14340. ``start`` = 1 is the released code, which comes to another beta.
    """

    paper: ClassVar[str] = "arXiv 2502.14340"
    formula: ClassVar[str] = "-log sigmoid(beta*D'),  R' = sum_t gamma^(t + start) log_ratio_t,  t from 0"

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

    gamma: float = hyperparameter(0.98, "weight of a token over that of the one before", gt=0, le=1)
    start: int = hyperparameter(0, "exponent of the first token", ge=0)

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        return _decay(chosen, self.gamma, self.start), _decay(rejected, self.gamma, self.start)


def _decay(side: Completions, gamma: float, start: int) -> Tensor:
    # bfloat16 could not tell places past 256 apart.
    wide = torch.promote_types(side.logp.dtype, torch.float32)
    return torch.pow(gamma, token_places(side).to(wide) + start)


def token_places(side: Completions) -> Tensor:
    """Place [B, T] of each completion token in its completion, from 0."""
    return torch.arange(side.mask.shape[1], device=side.mask.device).expand_as(side.mask)
