"""What logits say about their distributions, and the gradient that goes back into them, a tile at a time."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Normalised(NamedTuple):
    """Of ``C`` distributions, in nats: log-probs [C, n], and [C] the rest; None where not asked for."""

    logp: Tensor
    log_z: Tensor
    """The log-normaliser of the logits."""
    entropy: Tensor | None
    log_collision: Tensor | None


def normalise(
    z: Tensor, ids: Tensor, *, entropy: bool = False, log_collision: bool = False, log_probs: bool = False
) -> Normalised:
    """Statistics of ``softmax(z)``; ``z`` [C, V] is overwritten: by all log-probs, if asked for.

    Args:
        z: logits, float32 or wider.
        ids: [C, n] int64 tokens whose log-probs are wanted.
        entropy: whether that too.
        log_collision: whether log sum_v q_v^2 too.
        log_probs: whether to leave the log-probs in ``z``.
    """
    peak = z.amax(-1, keepdim=True)
    # One exponential serves all: its sum is the normaliser, its mean with the logits the entropy.
    e = z.sub_(peak).exp()
    total = e.sum(-1)
    log_total = total.log()
    collision = h = None
    if log_collision:
        collision = 2 * (torch.linalg.vector_norm(e, dim=-1).log() - log_total)
    if entropy:
        # A token without probability has a logit of -inf and adds nothing.
        h = (log_total - e.mul_(z).nansum(-1) / total).clamp_(min=0)
    logp = z.gather(-1, ids) - log_total[:, None]
    if log_probs:
        z.sub_(log_total[:, None])
    return Normalised(logp, peak[:, 0] + log_total, h, collision)


@dataclass(frozen=True)
class Incoming:
    """Gradients of a loss with respect to statistics at ``N`` positions, with the values they need.

    ``log_collision``, ``entropy`` and ``reverse_kl`` are pairs of (gradient [N], value [N]); ``forward_kl``
    is a gradient [N]; None where the statistic has no part in the loss.
    """

    ids: Tensor
    """[N, n] int64: the tokens whose log-probs were asked."""
    logp: Tensor
    """[N, n]: their gradients."""
    pull: Tensor
    """[N]: the sum of those."""
    entropy: tuple[Tensor, Tensor] | None = None
    log_collision: tuple[Tensor, Tensor] | None = None
    forward_kl: Tensor | None = None
    reverse_kl: tuple[Tensor, Tensor] | None = None

    @property
    def divergence(self) -> bool:
        """Whether the reference's distribution is needed."""
        return self.forward_kl is not None or self.reverse_kl is not None

    def into_logits(self, log_q: Tensor, log_p: Tensor | None, rows: slice, columns: slice) -> Tensor:
        """Overwrite log-probs ``log_q``, a tile [C, Vs], by the gradient of its logits.

        With q the probabilities, H the entropy, c the collision and G the gradient of a log-prob:

            d log q(id) / d z = [v = id] - q              d H / d z = -q (log q + H)
            d log c / d z = 2 (q^2 / c - q)
            d KL(p || q) / d z = q - p                    d KL(q || p) / d z = q (log q - log p - KL(q || p))

        ``log_p``, where a divergence has a gradient, is overwritten too.
        """
        # Whatever is a number times q goes into one factor.
        factor = -self.pull[rows]
        rest: Tensor | None = None
        if self.reverse_kl is not None and log_p is not None:
            g, value = (part[rows] for part in self.reverse_kl)
            apart = log_q - log_p
            factor = factor - g * value
        q = log_q.exp_()
        if self.reverse_kl is not None:
            # A token without probability pulls nothing, even where the other model has none for it either.
            rest = apart.masked_fill_(q == 0, 0).mul_(q).mul_(g[:, None])
        if self.forward_kl is not None and log_p is not None:
            g = self.forward_kl[rows]
            factor = factor + g
            rest = _sum(rest, log_p.exp_().mul_(-g[:, None]))
        if self.entropy is not None:
            g, value = (part[rows] for part in self.entropy)
            factor = factor - g * value
            rest = _sum(rest, torch.special.entr(q).mul_(g[:, None]))
        if self.log_collision is not None:
            g, value = (part[rows] for part in self.log_collision)
            factor = factor - 2 * g
            rest = _sum(rest, q.square().mul_((2 * g / value.exp())[:, None]))
        d = q.mul_(factor[:, None])
        if rest is not None:
            d += rest
        return self._scatter(d, rows, columns)

    def _scatter(self, d: Tensor, rows: slice, columns: slice) -> Tensor:
        """Add the gradients of the log-probs whose tokens are among ``columns``."""
        at = self.ids[rows] - columns.start
        inside = (at >= 0) & (at < columns.stop - columns.start)
        return d.scatter_add_(-1, at.clamp_(0, columns.stop - columns.start - 1), self.logp[rows] * inside)


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a.add_(b)


def through_cap(d: Tensor, z: Tensor, cap: float) -> Tensor:
    """``d``, a gradient of capped logits ``z`` (overwritten), as one of the logits before the cap."""
    return d.mul_(z.div_(cap).square_().neg_().add_(1))
