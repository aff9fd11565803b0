"""The reference's whole distribution at each position, rebuilt a tile at a time."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .head import Head
from .projection import Projection


class WholeReference(Protocol):
    """Whatever gives the reference's logits over the whole vocabulary at ``N`` positions."""

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """A tile [C, Vs], float32 or wider, up to a constant a position; the caller's to overwrite."""


@dataclass(frozen=True)
class FromHidden:
    """The exact tier: the reference's last hidden states through its own output head."""

    head: Head
    """On the device of the policy's scores."""
    hidden: Tensor
    """[N, d]."""

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """A tile [C, Vs]; the products are taken in the head's own precision, autocast or not."""
        dtype = torch.promote_types(self.hidden.dtype, self.head.weight.dtype)
        projection = Projection.of(self.head, self.hidden[rows], dtype)
        return projection.logits(slice(0, len(projection.hidden)), columns)


@dataclass(frozen=True)
class FromLogProbs:
    """A cache that holds the whole distribution: k = V."""

    logp: Tensor
    """[N, V] float32, by token id; need not be normalised to the last digit."""

    @classmethod
    def of(cls, ids: Tensor, logp: Tensor) -> "FromLogProbs":
        """From cached entries, ``ids`` and ``logp`` [N, V], in any order; those of -inf are of no token."""
        return cls(torch.full_like(logp, -torch.inf).scatter_reduce_(-1, ids, logp, "amax"))

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """A tile [C, Vs]; normalising gives back what rounding took from the sum of the probabilities."""
        return self.logp[rows, columns].clone()
