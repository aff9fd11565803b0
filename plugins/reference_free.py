"""Objectives without a reference: the policy's own log-probabilities, and likelihood on the chosen side.

They train from any cache; its reference log-probabilities are read for the log only.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.errors import ConfigError
from ..core.objective import Completions, MarginObjective, Objective, PairLoss, hyperparameter, logistic_loss
from .numerics import log1mexp


@dataclass(frozen=True)
class SimPO(MarginObjective):
    """Mean log-probabilities as rewards, and a margin to be reached.

    Meng et al., arXiv 2405.14734. ``gamma`` is in units of the logit; give it, or its ratio to beta.
    """

    paper: ClassVar[str] = "arXiv 2405.14734"
    formula: ClassVar[str] = "-log sigmoid(beta*(mean logp(chosen) - mean logp(rejected)) - gamma)"
    watch: ClassVar[str] = (
        "The learning rate decides: ``logps/chosen`` that falls steeply, with ``entropy`` or ``kl/chosen`` "
        "shooting up, is a policy that comes apart with nothing to hold it. ``rewards/margins`` should pass "
        "gamma."
    )

    beta: float = hyperparameter(2.0, "scale of a mean log-probability", gt=0)
    gamma: float | None = hyperparameter(None, "margin to be reached", ge=0)
    gamma_beta_ratio: float | None = hyperparameter(None, "gamma over beta; 0.25 without either", ge=0)
    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ConfigError("simpo: give gamma or gamma_beta_ratio, not both")

    def reward(self, side: Completions) -> Tensor:
        """``beta * mean_t logp`` [B]."""
        return self.beta * side.mean(side.logp)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """The difference of rewards less ``gamma`` [B]."""
        ratio = 0.25 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return super().margin(chosen, rejected) - (self.beta * ratio if self.gamma is None else self.gamma)

    def link(self, margin: Tensor) -> Tensor:
        """Smoothed ``-log sigmoid`` [B]."""
        return logistic_loss(margin, self.label_smoothing)


@dataclass(frozen=True)
class CPO(Objective):
    """DPO without its reference, and likelihood of the chosen completion to hold it.

    Xu et al., arXiv 2401.08417, Eq. 3.
    """

    paper: ClassVar[str] = "arXiv 2401.08417"
    formula: ClassVar[str] = "-log sigmoid(beta*(logp(chosen) - logp(rejected))) - nll_coef*logp(chosen)"
    watch: ClassVar[str] = (
        "``logps/chosen`` rises or holds, since the likelihood's term pulls it; where it falls, raise "
        "nll_coef or lower the learning rate. ``kl/chosen`` is bounded by nothing else."
    )

    beta: float = hyperparameter(0.1, "scale of a summed log-probability", gt=0)
    nll_coef: float = hyperparameter(1.0, "weight of the chosen completion's likelihood", ge=0)
    nll: str = hyperparameter(
        "token_mean",
        "likelihood as a mean over tokens, as released, or their sum, as the paper writes it",
        choices=("token_mean", "sum"),
    )
    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The preference term and the likelihood's."""
        a, b = chosen.sum(chosen.logp), rejected.sum(rejected.logp)
        likelihood = a / chosen.length if self.nll == "token_mean" else a
        loss = logistic_loss(self.beta * (a - b), self.label_smoothing) - self.nll_coef * likelihood
        return PairLoss(loss, self.beta * a.detach(), self.beta * b.detach())


@dataclass(frozen=True)
class SLiC(Objective):
    """Rank calibration: a hinge on summed log-probabilities, and likelihood of the chosen completion.

    SLiC-HF, Zhao et al., arXiv 2305.10425. For the hinge relative to a reference see ``hinge``.
    """

    paper: ClassVar[str] = "arXiv 2305.10425"
    formula: ClassVar[str] = "max(0, margin - logp(chosen) + logp(rejected)) - lambda_coef*logp(chosen)"
    watch: ClassVar[str] = (
        "``rewards/margins`` passes the margin and stays; ``logps/chosen`` rises from then on, since only "
        "likelihood is left: ``kl/chosen`` that goes on growing asks for a smaller lambda_coef."
    )

    margin: float = hyperparameter(1.0, "difference of log-probabilities to be reached, in nats", ge=0)
    lambda_coef: float = hyperparameter(0.1, "weight of the chosen completion's likelihood", ge=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The hinge and the likelihood's term; no gradient at the kink."""
        a, b = chosen.sum(chosen.logp), rejected.sum(rejected.logp)
        return PairLoss(F.relu(self.margin - a + b) - self.lambda_coef * a, a.detach(), b.detach())


@dataclass(frozen=True)
class ORPO(Objective):
    """Likelihood of the chosen completion, and the odds of chosen over rejected.

    Hong et al., arXiv 2403.07691, Eqs. 4-7; odds of the geometric-mean token probability. The likelihood is
    that of the completion: released trainers add the prompt's, which a cache does not hold.
    """

    paper: ClassVar[str] = "arXiv 2403.07691"
    formula: ClassVar[str] = (
        "-sft_coef*m_chosen - lam*log sigmoid(beta*(o_chosen - o_rejected)),  m = mean logp,  "
        "o = m - log(1 - e^m)"
    )
    watch: ClassVar[str] = (
        "``loss`` is mostly the chosen side's likelihood, so that a learning rate for fine-tuning is "
        "wanted, larger than DPO's; ``logps/chosen`` rises. ``rewards/margins`` is lam times a difference "
        "of means, and tiny: its sign counts."
    )

    lam: float = hyperparameter(0.1, "weight of the odds ratio", ge=0)
    beta: float = hyperparameter(1.0, "scale of the log-odds", gt=0)
    sft_coef: float = hyperparameter(1.0, "weight of the chosen completion's likelihood", ge=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The likelihood's term and the odds ratio's."""
        a, b = chosen.mean(chosen.logp), rejected.mean(rejected.logp)
        odds = self.beta * (log_odds(a) - log_odds(b))
        loss = -self.sft_coef * a - self.lam * F.logsigmoid(odds)
        return PairLoss(loss, self.lam * a.detach(), self.lam * b.detach())


@dataclass(frozen=True)
class ASFT(Objective):
    """Likelihood of the chosen completion, and each side's odds by themselves.

    arXiv 2409.10571 ("aligned supervised fine-tuning"); ``beta`` tempers the odds as in arXiv 2502.01237.
    """

    paper: ClassVar[str] = "arXiv 2409.10571"
    formula: ClassVar[str] = (
        "-sft_coef*m_chosen - lam*(log sigmoid(beta*o_chosen) + log sigmoid(-beta*o_rejected)),  "
        "m, o as in orpo"
    )
    watch: ClassVar[str] = (
        "``logps/chosen`` rises and ``logps/rejected`` falls with no reference to hold either: "
        "``kl/rejected`` that runs away asks for a smaller lam or learning rate."
    )

    lam: float = hyperparameter(1.0, "weight of the odds", ge=0)
    beta: float = hyperparameter(1.0, "scale of the log-odds", gt=0)
    sft_coef: float = hyperparameter(1.0, "weight of the chosen completion's likelihood", ge=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The likelihood's term and both sides' odds."""
        mean = chosen.mean(chosen.logp)
        a, b = self.beta * log_odds(mean), self.beta * log_odds(rejected.mean(rejected.logp))
        loss = -self.sft_coef * mean - self.lam * (F.logsigmoid(a) + F.logsigmoid(-b))
        return PairLoss(loss, a.detach(), b.detach())


def log_odds(mean_logp: Tensor) -> Tensor:
    """``log(p / (1 - p))`` [B] of ``p = exp(mean_logp)``; finite also where p rounds to 1."""
    return mean_logp - log1mexp(mean_logp)
