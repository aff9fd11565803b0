"""The reference's whole distribution at each position, rebuilt a chunk of positions at a time."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .head import Head, logits


class WholeReference(Protocol):
    """Whatever gives log p over the whole vocabulary at some of ``N`` positions."""

    def log_probs(self, rows: slice) -> Tensor:
        """Log p [C, V] in nats, float32 or wider; the caller's to overwrite."""


@dataclass(frozen=True)
class FromHidden:
    """The exact tier: the reference's last hidden states through its own output head."""

    head: Head
    """On the device of the policy's scores."""
    hidden: Tensor
    """[N, d]."""

    def log_probs(self, rows: slice) -> Tensor:
        """Log p [C, V] in nats; the head's products are taken in its own precision, autocast or not."""
        dtype = torch.promote_types(self.hidden.dtype, self.head.weight.dtype)
        z = logits(self.head, self.hidden[rows], dtype)
        return z.sub_(torch.logsumexp(z, -1, keepdim=True))


@dataclass(frozen=True)
class FromLogProbs:
    """A cache that holds the whole distribution: k = V."""

    logp: Tensor
    """[N, V] float32, by token id; need not be normalised to the last digit."""

    @classmethod
    def of(cls, ids: Tensor, logp: Tensor) -> "FromLogProbs":
        """From cached entries, ``ids`` and ``logp`` [N, V], in any order; those of -inf are of no token."""
        return cls(torch.full_like(logp, -torch.inf).scatter_reduce_(-1, ids, logp, "amax"))

    def log_probs(self, rows: slice) -> Tensor:
        """Log p [C, V] in nats. What rounding took from the sum of the probabilities is given back."""
        return torch.log_softmax(self.logp[rows], -1)


def frozen(head: Head) -> Head:
    """The same head, out of reach of gradients."""
    return replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
