"""The weighting contract: what multiplies an objective without being one.

A weighting gives weights to tokens (they multiply the log-ratios, as in TIS-DPO), a scale to a pair (it
multiplies the margin before the link, as in MallowsPO), or a weight to a pair's loss (as in WPO). Any
:class:`~tdpo.core.objective.MarginObjective` takes any number of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from .objective import CacheFacts, Completions
from .options import check, hyperparameter

__all__ = ["Weighting", "hyperparameter"]


@dataclass(frozen=True)
class Weighting:
    """Subclass as a frozen dataclass whose fields are :func:`hyperparameter` s; override what it gives.

    Weights are constants: the methods run without gradient, unless ``detached`` is False.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Statistics that it reads, as in :class:`~tdpo.core.objective.Objective`."""
    detached: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    """Where the formula comes from."""
    formula: ClassVar[str] = ""
    """The weight in one line, for ``tdpo plugins describe``."""
    watch: ClassVar[str] = ""
    """Which logged figures tell that it goes well or badly, for ``tdpo plugins describe``; figures in double
    backticks."""

    def __post_init__(self) -> None:
        check(self, f"{type(self).__name__}: ")

    def prepared(self, facts: CacheFacts) -> Self:
        """The weighting with what it takes from the whole cache filled in; called once, before training."""
        return self

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor] | None:
        """What multiplies the log-ratios [B, T] of both sides; None for nothing."""
        return None

    def pair_scale(self, chosen: Completions, rejected: Completions) -> Tensor | None:
        """What multiplies the margin [B] before the link; None for nothing."""
        return None

    def loss_weight(self, chosen: Completions, rejected: Completions) -> Tensor | None:
        """What multiplies the loss [B]; None for nothing."""
        return None
