"""MallowsPO (Chen et al., arXiv 2405.14953): pairs whose prompt leaves less open count for more.

How open a prompt is, its dispersion, is told from the reference's entropy on both completions: with H the
mean over tokens, averaged over the two sides, and V the size of the vocabulary, ``H / log V`` in (0, 1]. The
coefficient of a pair is ``c = factor * scale * -log(H / log V)``; c = 1 is the objective without it.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..core.dispersion import mean_entropies, negative_log_dispersion
from ..core.errors import ConfigError
from ..core.objective import (
    CacheFacts,
    Completions,
    MarginObjective,
    Objective,
    PairLoss,
    hyperparameter,
    logistic_loss,
)
from ..core.weighting import Weighting
from .numerics import log1mexp

_SCALE_HELP = (
    "multiplier of -log dispersion: a number (0.29 as released), or auto for coefficients whose mean over "
    "the cache is 1"
)
_FACTOR_HELP = "further multiplier: 1 as released, 2 as the paper writes it"
_VOCABULARY_HELP = "V, padding included; that of the cache when not given"


@dataclass(frozen=True)
class Coefficient:
    """What makes a pair's coefficient of its dispersion."""

    scale: float | str
    factor: float
    vocab_size: int | None

    def prepared(self, facts: CacheFacts) -> "Coefficient":
        """With V, and the scale that ``auto`` stands for, from the cache."""
        known = replace(self, vocab_size=self.vocab_size or facts.vocab_size)
        if known.scale != "auto":
            return known
        once = replace(known, scale=1.0)
        found = [
            once.of_entropy(torch.tensor([mean_entropies(one)]))
            for one in facts.pairs(frozenset({"ref_entropy"}))
        ]
        mean = float(torch.cat(found).mean()) if found else 0.0
        if mean <= 0:
            raise ConfigError("mallows: scale=auto needs entropies below log V in the cache; give a number")
        return replace(known, scale=1 / mean)

    def __call__(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Coefficients [B] of a batch, without gradient.

        Raises:
            ValueError: V or the scale is still to come from a cache.
        """
        means = [side.mean(side.ref_entropy) for side in (chosen, rejected)]
        return self.of_entropy(torch.stack(means, -1)).detach()

    def of_entropy(self, entropy: Tensor) -> Tensor:
        """Coefficients [B] of mean entropies [B, 2] in nats."""
        if self.vocab_size is None or isinstance(self.scale, str):
            raise ValueError("vocab_size and scale=auto come from the cache: give them, or use prepared()")
        return self.factor * self.scale * negative_log_dispersion(entropy, self.vocab_size)


@dataclass(frozen=True)
class Mallows(Weighting):
    """Scale a pair's margin by how little its prompt leaves open.

    On DPO's margin it is MallowsPO-theta.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref_entropy"})
    paper: ClassVar[str] = "arXiv 2405.14953"
    formula: ClassVar[str] = "margin * c,  c = -factor*scale*log(H / log V)"
    watch: ClassVar[str] = (
        "``weights/pair`` averages about 1 with scale=auto. A mean far from it is another beta: ``loss`` "
        "then barely moves, or drops at once."
    )

    scale: float | str = hyperparameter(0.29, _SCALE_HELP, gt=0, choices=("auto",))
    factor: float = hyperparameter(1.0, _FACTOR_HELP, gt=0)
    vocab_size: int | None = hyperparameter(None, _VOCABULARY_HELP, gt=1)

    def prepared(self, facts: CacheFacts) -> Self:
        """V and the scale, from the cache."""
        found = _coefficient(self).prepared(facts)
        return replace(self, scale=found.scale, vocab_size=found.vocab_size)

    def pair_scale(self, chosen: Completions, rejected: Completions) -> Tensor:
        """The coefficients [B]."""
        return _coefficient(self)(chosen, rejected)


@dataclass(frozen=True)
class _Dispersed(Objective):
    needs: ClassVar[frozenset[str]] = frozenset({"ref_entropy"})
    paper: ClassVar[str] = "arXiv 2405.14953"

    scale: float | str = hyperparameter(0.29, _SCALE_HELP, gt=0, choices=("auto",))
    factor: float = hyperparameter(1.0, _FACTOR_HELP, gt=0)
    vocab_size: int | None = hyperparameter(None, _VOCABULARY_HELP, gt=1)
    length_normalise: bool = hyperparameter(False, "mean log-ratios in place of sums")

    def prepared(self, facts: CacheFacts) -> Self:
        """V and the scale, from the cache."""
        found = _coefficient(self).prepared(facts)
        return replace(self, scale=found.scale, vocab_size=found.vocab_size)

    def difference(self, chosen: Completions, rejected: Completions) -> Tensor:
        """D [B], in nats."""
        over = Completions.mean if self.length_normalise else Completions.sum
        return over(chosen, chosen.log_ratio) - over(rejected, rejected.log_ratio)


@dataclass(frozen=True)
class MallowsTheta(_Dispersed, MarginObjective):
    """DPO whose margin is scaled by how little the prompt leaves open.

    arXiv 2405.14953, MallowsPO-theta. As released: beta=10, length_normalise=true, reference_free=true.
    """

    formula: ClassVar[str] = "-log sigmoid(c*beta*D),  c = -factor*scale*log(H / log V)"
    watch: ClassVar[str] = (
        "``rewards/margins`` is without c: where ``loss`` barely moves although margins grow, c is small; "
        "scale=auto makes it average 1."
    )

    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``c * beta * D`` [B]."""
        return _coefficient(self)(chosen, rejected) * self.beta * self.difference(chosen, rejected)

    def link(self, margin: Tensor) -> Tensor:
        """Smoothed ``-log sigmoid`` [B]."""
        return logistic_loss(margin, self.label_smoothing)


@dataclass(frozen=True)
class MallowsIPO(_Dispersed, MarginObjective):
    """IPO whose difference is scaled by how little the prompt leaves open.

    ``official`` is MallowsPO's release, ``rainbow`` RainbowPO's (beta^2 times the former), ``modified`` its
    squared hinge; their gradients differ in size, so that learning rates do not carry over.
    """

    formula: ClassVar[str] = "(c*D - 1/(2 beta))^2,  c = -factor*scale*log(H / log V)"
    watch: ClassVar[str] = (
        "``loss`` is a squared distance, (1/(2 beta))^2 at the start, that should fall steadily; gradients "
        "of the three forms differ in size, so that ``grad_norm`` tells whether the learning rate suits the "
        "form."
    )

    length_normalise: bool = hyperparameter(True, "mean log-ratios in place of sums")
    form: str = hyperparameter(
        "official", "scaling of the square", choices=("official", "rainbow", "modified")
    )

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``c * D`` [B]."""
        return _coefficient(self)(chosen, rejected) * self.difference(chosen, rejected)

    def link(self, margin: Tensor) -> Tensor:
        """The square [B] of the form."""
        if self.form == "official":
            return (margin - 1 / (2 * self.beta)).square()
        apart = self.beta * margin - 0.5
        return (apart if self.form == "rainbow" else apart.clamp(max=0)).square()


@dataclass(frozen=True)
class MallowsPhi(_Dispersed):
    """The probability of ranking chosen first in a Kendall-tau Mallows model, at the distance beta*D.

    arXiv 2405.14953, MallowsPO-phi. The link jumps at 0, where every pair starts: rounding of the cached
    log-probabilities decides on which side, so that the first steps are noisy.
    """

    formula: ClassVar[str] = "-log g_c(beta*D),  g_c(s) = (s+1)/(1-q^(s+1)) - s/(1-q^s),  q = exp(-c)"
    watch: ClassVar[str] = (
        "The link jumps at a margin of 0, where every pair starts: ``loss`` and ``grad_norm`` of the first "
        "steps are noise, each pair at 0.42 or 1.07 where c = 2. ``rewards/accuracies`` must rise once "
        "margins are larger than rounding; where it does not, take mallows_theta."
    )

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """Minus log of the probability of the right order."""
        distance = self.beta * self.difference(chosen, rejected)
        loss = -_log_rank_probability(distance, _coefficient(self)(chosen, rejected))
        a, b = (self.beta * side.sum(side.log_ratio).detach() for side in (chosen, rejected))
        return PairLoss(loss, a, b)


def _log_rank_probability(s: Tensor, c: Tensor) -> Tensor:
    """The logarithm of g_c(s) [B], with ``1 - g(a) = psi(a) - psi(a + 1)`` for a = |s|.

    ``psi(u) = u / (e^(c u) - 1)``.
    At exactly s = 0, where g jumps, it is log 1/2 with the derivative that both sides have in common.
    """
    a = torch.where(s == 0, torch.ones_like(s), s.abs())
    flat = c * (a + 1) < 0.05
    rest = torch.where(flat, _flat_rest(a, c), _log_rest(a, torch.where(flat, torch.ones_like(c), c)))
    log_g = torch.where(s < 0, rest, log1mexp(rest))
    return torch.where(s == 0, math.log(0.5) + 2 * _slope_at_0(c) * s, log_g)


def _log_rest(a: Tensor, c: Tensor) -> Tensor:
    """log(1 - g_c(a)) [B] for a, c > 0."""

    def log_psi(u: Tensor) -> Tensor:
        return u.log() - c * u - (-torch.expm1(-c * u)).log()

    first = log_psi(a)
    return first + log1mexp(log_psi(a + 1) - first)


def _flat_rest(a: Tensor, c: Tensor) -> Tensor:
    """The same by the series of psi where ``c (a + 1)`` is so small that its terms cancel."""
    x = c * (a.clamp(max=1e6) + 1)
    x = torch.where(x < 0.05, x, torch.zeros_like(x)) / (a + 1)

    def power(k: int) -> Tensor:
        return x ** (k - 1) * ((a + 1) ** k - a**k)

    return torch.log(0.5 - power(2) / 12 + power(4) / 720 - power(6) / 30240)


def _slope_at_0(c: Tensor) -> Tensor:
    """g_c'(0) [B], from either side."""
    flat = c < 0.05
    safe = torch.where(flat, torch.ones_like(c), c)
    rest = -torch.expm1(-safe)
    exact = (rest - safe * (-safe).exp()) / rest.square() - 0.5
    return torch.where(flat, c / 6, exact)


def _coefficient(options: "Mallows | _Dispersed") -> Coefficient:
    return Coefficient(options.scale, options.factor, options.vocab_size)
