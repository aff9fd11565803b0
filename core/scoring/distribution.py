"""What a chunk of logits says: log-probs, entropy, the likeliest tokens, and draws from the rest.

The vocabulary is walked in blocks of 64 tokens: the k likeliest tokens lie in the k blocks with the largest
maxima, and a draw finds its block first and its token inside it. So a chunk costs a handful of passes over
its logits, none of them a sort or a running sum over the vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 64

# With less than this of the likeliest token's probability, float32 cannot tell the rest's tokens apart.
_FAINT = 1e-30


class Sampling(NamedTuple):
    """How many entries of its distribution a position keeps: k and m where it is open, fewer where not."""

    head: int
    """k: the likeliest tokens, at most."""
    tail: int
    """m: the draws from the rest, at most."""
    head_mass: float = 1.0
    """The head ends early, with the first entry by which it holds this share of the probability."""
    tail_mass: float = 0.0
    """m draws where at least this share is left outside the head, and in proportion fewer, but one, below."""


class Described(NamedTuple):
    """Statistics of ``C`` distributions, in nats, in the logits' dtype."""

    logp: Tensor
    """[C]: log-prob of the label."""
    entropy: Tensor
    """[C], never negative."""
    ids: Tensor
    """[C, k + m] int64: the likeliest tokens in falling order, then draws from the rest."""
    dist_logp: Tensor
    """[C, k + m]: their log-probs; -inf where a position has no such entry."""


def describe(z: Tensor, labels: Tensor, sampling: Sampling, uniforms: Tensor) -> Described:
    """Describe the distributions ``softmax(z)``.

    Args:
        z: [C, V] logits, float32 or float64; overwritten.
        labels: [C] int64.
        sampling: how many entries; the head is at most V.
        uniforms: [C, m] in [0, 1), what the draws are made from. With k = V there is no rest: m must be 0.
    """
    top = largest(z, sampling.head)
    z.sub_(top.values[:, :1] if sampling.head else z.amax(-1, keepdim=True))
    weights, blocks = _exp_in_blocks(z)
    # The likeliest tokens' shares are taken out; the sums over all tokens are those of both parts.
    head, ids = z.gather(-1, top.indices), top.indices
    weights.scatter_(-1, ids, 0)
    sums = blocks.sum(-1)
    rest, shares = sums.sum(-1), head.exp()
    total = rest + shares.sum(-1)
    log_total, there = total.log(), _in_head(shares, total, sampling)
    drawn = None
    if uniforms.shape[1]:
        # What the head does not keep can be drawn.
        spare = shares.masked_fill(there, 0)
        weights.scatter_(-1, ids, spare)
        sums.scatter_add_(-1, ids // _BLOCK, spare)
        kept = top.indices.masked_fill(~there, -1)
        drawn = _draw(z, weights, blocks, sums, kept, uniforms)
        weights.scatter_(-1, ids, 0)
        there = torch.cat([there, _is_drawn((rest + spare.sum(-1)) / total, sampling)], -1)
        ids = torch.cat([ids, drawn], -1)
    at_label, at_ids = z.gather(-1, labels[:, None])[:, 0], z.gather(-1, ids)
    return Described(
        at_label - log_total,
        _entropy(z, weights, head, log_total),
        ids,
        (at_ids - log_total[:, None]).masked_fill_(~there, -torch.inf),
    )


def _in_head(shares: Tensor, total: Tensor, sampling: Sampling) -> Tensor:
    """Which of the likeliest tokens, of weights ``shares`` [C, k] out of ``total`` [C], are in the head."""
    if sampling.head_mass >= 1:
        return torch.ones_like(shares, dtype=torch.bool)
    before = shares.cumsum(-1) - shares
    return before < sampling.head_mass * total[:, None]


def _is_drawn(left: Tensor, sampling: Sampling) -> Tensor:
    """Which of the m draws [C, m] are kept where ``left`` [C] of the probability is outside the head."""
    count = torch.full_like(left, sampling.tail)
    if sampling.tail_mass > 0:
        count = (sampling.tail * left / sampling.tail_mass).ceil().clamp(1, sampling.tail)
    return torch.arange(sampling.tail, device=left.device) < count[:, None]


def _entropy(z: Tensor, weights: Tensor, head: Tensor, log_total: Tensor) -> Tensor:
    """H [C]: log of the weights' sum less the mean of ``z``, head and rest apart; ``z`` is overwritten."""
    rest = z.mul_(weights).sum(-1)
    if not bool(rest.isfinite().all()):
        # An impossible token has weight 0 and a logit of -inf; it adds nothing.
        rest = z.nan_to_num_(nan=0).sum(-1)
    expected = rest + (head.exp() * head).nan_to_num_(nan=0).sum(-1)
    return (log_total - expected / log_total.exp()).clamp_(min=0)


class Largest(NamedTuple):
    """The largest entries of each row, in falling order."""

    values: Tensor
    indices: Tensor


def largest(z: Tensor, k: int) -> Largest:
    """The ``k`` largest of each row of ``z`` [C, V]: what ``z.topk(k)`` gives, ties aside."""
    rows, width = z.shape
    count = width // _BLOCK
    # With few blocks for each entry asked, the detour saves nothing.
    if not 0 < k <= count // 4:
        return Largest(*z.topk(k, -1))
    whole = count * _BLOCK
    blocks = z[:, :whole].unflatten(-1, (count, _BLOCK))
    best = blocks.amax(-1).topk(k, -1).indices
    inside = torch.arange(_BLOCK, device=z.device)
    candidates = (best[:, :, None] * _BLOCK + inside).reshape(rows, k * _BLOCK)
    if whole < width:
        last = torch.arange(whole, width, device=z.device).expand(rows, -1)
        candidates = torch.cat([candidates, last], -1)
    values, at = z.gather(-1, candidates).topk(k, -1)
    return Largest(values, candidates.gather(-1, at))


def _exp_in_blocks(z: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(z)`` [C, V], and the memory it lies in as blocks [C, V / 64, 64] padded with zeros."""
    rows, width = z.shape
    count = -(-width // _BLOCK)
    memory = z.new_empty(rows, count * _BLOCK)
    memory[:, width:] = 0
    weights = memory[:, :width]
    torch.exp(z, out=weights)
    return weights, memory.view(rows, count, _BLOCK)


def _draw(z: Tensor, weights: Tensor, blocks: Tensor, sums: Tensor, head: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids [C, m] drawn with replacement by ``weights`` [C, V].

    By inverse distribution function: over blocks, then inside the block that was found. ``weights`` are
    ``exp(z)`` with zeros at ``head`` [C, k] (-1: none), ``blocks`` the same memory and ``sums`` its sums.
    """
    cdf = sums.cumsum(-1)
    end = cdf[:, -1:]
    target = _below(uniforms.to(cdf.dtype) * end, end)
    block = torch.searchsorted(cdf, target, right=True).clamp_(max=sums.shape[-1] - 1)
    target -= cdf.gather(-1, block) - sums.gather(-1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).cumsum_(-1)
    target = _below(target, inside[:, :, -1]).clamp_(min=0)
    place = torch.searchsorted(inside, target[:, :, None], right=True)[:, :, 0]
    drawn = (block * _BLOCK + place).clamp_(max=z.shape[-1] - 1)
    # A running sum that rounding bends could find a token of no weight.
    again = (end[:, 0] < _FAINT) | (weights.gather(-1, drawn) <= 0).any(-1)
    if bool(again.any()):
        drawn[again] = _draw_finely(z[again], head[again], uniforms[again])
    return drawn


def _draw_finely(z: Tensor, head: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from the rest in float64, relative to its own likeliest token however improbable that is."""
    places = torch.where(head < 0, z.shape[-1], head)
    rest = torch.nn.functional.pad(z.double(), (0, 1)).scatter(-1, places, -torch.inf)[:, :-1]
    peak = rest.amax(-1, keepdim=True)
    cdf = (rest - torch.where(peak > -torch.inf, peak, 0)).exp().cumsum(-1)
    end = cdf[:, -1:]
    target = _below(uniforms.double() * end, end)
    return torch.searchsorted(cdf, target, right=True).clamp_(max=z.shape[-1] - 1)


def _below(target: Tensor, end: Tensor) -> Tensor:
    """``target``, moved below ``end``: at it, a search would fall past the last token that has any weight."""
    return torch.minimum(target, torch.nextafter(end, torch.zeros_like(end)))
