"""The objective contract: what a loss is given, what it returns, and what it may know.

An objective owns all of its loss arithmetic and nothing else: no model, no cache, no device, no
distributed call. Built-in and third-party objectives import this module only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache.pairs import ScoredPair
from .draws import uniform
from .options import check, hyperparameter

__all__ = [
    "CacheFacts",
    "Completions",
    "MarginObjective",
    "Objective",
    "PairLoss",
    "hyperparameter",
    "logistic_loss",
]

# Statistics [B, T] that an objective may name in `needs`, beside logp and ref_logp, which are always there.
STATISTICS = ("forward_kl", "reverse_kl", "entropy", "log_collision", "ref_entropy", "token_weight")


@dataclass(frozen=True)
class Completions:
    """One side of a batch: per-token statistics of the completions, right-padded to ``T`` tokens.

    Every tensor is ``[B, T]`` unless it says otherwise; log-probabilities, entropies and divergences are in
    nats. Values at padded positions are arbitrary: go through :meth:`sum` and :meth:`mean`, which ignore
    them.
    """

    mask: Tensor
    """bool; True at completion tokens."""
    logp: Tensor
    """log pi(y_t | s_t) of the policy, with gradient."""
    ref_logp: Tensor
    """log ref(y_t | s_t), from the cache."""
    forward_kl: Tensor | None = None
    """KL(ref(.|s_t) || pi(.|s_t)), with gradient."""
    reverse_kl: Tensor | None = None
    """KL(pi(.|s_t) || ref(.|s_t)), with gradient."""
    entropy: Tensor | None = None
    """H(pi(.|s_t)), with gradient."""
    log_collision: Tensor | None = None
    """log sum_v pi(v|s_t)^2, with gradient."""
    ref_entropy: Tensor | None = None
    """H(ref(.|s_t)) over the full vocabulary, from the cache."""
    token_weight: Tensor | None = None
    """What a weighting multiplies each token's log-ratio with; 1 where there is none."""
    draw_seed: Tensor | None = None
    """[B] int64: what random draws of a completion start from, see :meth:`uniform`. Of the pair, the side,
    the epoch and the run's seed alone; evaluations draw the same in every run."""
    running: Mapping[str, Tensor] = field(default_factory=dict)
    """Means over the run so far of the figures that :meth:`Objective.observe` gives: name -> scalar. Empty
    outside of a fit."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Statistics added to the cache, by their name in ``needs``; read them with :meth:`added`."""

    @property
    def log_ratio(self) -> Tensor:
        """``token_weight * (logp - ref_logp)`` [B, T]."""
        ratio = self.logp - self.ref_logp
        return ratio if self.token_weight is None else self.token_weight * ratio

    @property
    def length(self) -> Tensor:
        """Completion tokens [B], int64."""
        return self.mask.sum(-1)

    def uniform(self, salt: str = "") -> Tensor:
        """Random numbers [B, T] in [0, 1), one a token, float32 or wider: the same in every pass of an epoch.

        They depend on ``draw_seed`` and the token's place in its completion alone: not on the batch, its
        padding or its device.

        Args:
            salt: what they are for; draws of different names are independent.

        Raises:
            ValueError: there is no seed, because no one declared ``draw_seed`` in ``needs``.
        """
        if self.draw_seed is None:
            raise ValueError("nothing to draw from; name 'draw_seed' in the objective's `needs`")
        wide = torch.promote_types(self.logp.dtype, torch.float32)
        return uniform(self.draw_seed, self.mask.shape[1], salt, wide)

    def added(self, name: str) -> Tensor:
        """A statistic added to the cache (``tdpo cache add``), by its name in ``needs``; without gradient.

        Returns:
            One number a token: [B, T], 0 at padding. Several a token: [B, T, n]. A vector a completion, or
            one of the pair: [B, d], the pair's the same on both sides. float32; int64 for whole numbers.

        Raises:
            ValueError: it was not read, because the objective's ``needs`` does not name it.
        """
        if name not in self.extra:
            raise ValueError(f"the statistic {name!r} was not read; name it in the objective's `needs`")
        return self.extra[name]

    def sum(self, x: Tensor | None) -> Tensor:
        """Sum of ``x [B, T]`` over completion tokens -> [B], in float32 or wider.

        Raises:
            ValueError: ``x`` is a statistic that was not computed, because no one declared it in ``needs``.
        """
        if x is None:
            raise ValueError("this statistic was not computed; name it in the objective's `needs`")
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return torch.where(self.mask, wide, wide.new_zeros(())).sum(-1)

    def mean(self, x: Tensor | None) -> Tensor:
        """Mean of ``x [B, T]`` over completion tokens -> [B]. Raises as :meth:`sum`."""
        return self.sum(x) / self.length


@dataclass(frozen=True)
class PairLoss:
    """What an objective returns for a batch of ``B`` pairs. The batch's loss is the mean of ``loss``."""

    loss: Tensor
    """[B], with gradient."""
    chosen_reward: Tensor
    """[B], detached; implicit reward, for logging."""
    rejected_reward: Tensor
    """[B], detached; implicit reward, for logging."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further figures to log: name -> [B] or scalar, detached."""


@dataclass(frozen=True)
class CacheFacts:
    """What an objective or a weighting may ask of the cache that it is to be trained from, before it is."""

    vocab_size: int
    """V of the logits, padding of the vocabulary included: entropies are its logarithm at most."""
    pairs: Callable[[frozenset[str]], Iterator[ScoredPair]]
    """All cached pairs, with the statistics named, such as ``{"ref_entropy"}``."""


@dataclass(frozen=True)
class Objective(ABC):
    """A preference loss. Subclass as a frozen dataclass whose fields are :func:`hyperparameter` s."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Names out of ``STATISTICS`` that the loss reads, beside logp and ref_logp; ``"draw_seed"`` where it
    draws; and names of columns added to the cache: ``"positive_logp"``, or ``"second.ref_logp"`` for the
    column of one set of scores."""
    batch_level: ClassVar[bool] = False
    """Whether a pair's loss depends on the other pairs of the batch (a rank, a mean, a baseline). It is then
    given all pairs of an optimiser step at once, and a fit that would cut them up is refused."""
    paper: ClassVar[str] = ""
    """Where the formula comes from, such as ``"arXiv 2305.18290"``."""
    formula: ClassVar[str] = ""
    """The loss in one line, for ``tdpo plugins describe``."""
    watch: ClassVar[str] = ""
    """Which logged figures tell that it goes well or badly, for ``tdpo plugins describe``; figures in double
    backticks."""
    running: ClassVar[frozenset[str]] = frozenset()
    """Names of the figures that :meth:`observe` gives, whose means over the run so far the loss reads."""

    def __post_init__(self) -> None:
        check(self, f"{type(self).__name__}: ")

    def prepared(self, facts: CacheFacts) -> Self:
        """The objective with what it takes from the whole cache filled in; called once, before training."""
        return self

    def observe(self, chosen: Completions, rejected: Completions) -> Mapping[str, Tensor]:
        """The figures named in ``running``, one number a pair or a side: name -> [n].

        A fit keeps their means over all that was trained on, this optimiser step's pairs included, and gives
        them to the loss as ``chosen.running[NAME]`` and ``rejected.running[NAME]``. They change once an
        optimiser step, before its first loss: neither micro-batches nor processes nor evaluations matter.
        They are in checkpoints. A step of several micro-batches or processes costs one more forward pass.
        """
        return {}

    @abstractmethod
    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The loss of every pair, and what to log of it."""


@dataclass(frozen=True)
class MarginObjective(Objective):
    """A loss that is a link of a margin: ``loss = link(margin(chosen, rejected))``.

    Weightings that scale a pair multiply the margin before the link.
    """

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """The logit [B]: how much more the policy prefers chosen, relative to the reference.

        The difference of :meth:`rewards` unless overridden.
        """
        a, b = self.rewards(chosen, rejected)
        return a - b

    def link(self, margin: Tensor) -> Tensor:
        """Loss [B] of a margin [B]; ``-log sigmoid`` unless overridden."""
        return logistic_loss(margin)

    def reward(self, side: Completions) -> Tensor:
        """Implicit reward [B] of one side; ``beta * sum_t log_ratio`` unless overridden."""
        return self.beta * side.sum(side.log_ratio)

    def rewards(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """Both sides' implicit rewards [B], for the margin and the log.

        :meth:`reward` of each, unless overridden because one side's depends on the other.
        """
        return self.reward(chosen), self.reward(rejected)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The link of the margin, and both sides' rewards."""
        a, b = self.rewards(chosen, rejected)
        return PairLoss(self.link(self.margin(chosen, rejected)), a.detach(), b.detach())


def logistic_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-(1-e) log sigmoid(margin) - e log sigmoid(-margin)`` [B]: labels are flipped with probability e."""
    loss = -F.logsigmoid(margin)
    return (
        loss
        if not label_smoothing
        else (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-margin)
    )
