"""The one primitive: log-probabilities at a few token ids per position, without the [N, V] logits.

The forward pass walks over chunks of positions and keeps the log-normaliser of each; the backward pass
recomputes a chunk's logits. With ``G`` the gradient of the output, the gradient of a chunk's logits is
``scatter(G at ids) - softmax * G.sum(-1)``. Entropy and collision, which need the whole distribution, ride
along in the same loops.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .head import Head, accumulation_dtype, compute_dtype, logits, matmul, vocabulary_slices

# Bytes of one chunk's logits. Small enough to stay out of the peak, large enough to fill the matrix units.
_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


class Scores(NamedTuple):
    """Statistics at ``N`` positions, in nats, float32 (float64 for a float64 head); with gradient."""

    logp: Tensor
    """log q at the asked ids [N, n]."""
    entropy: Tensor | None = None
    """H(q) [N]."""
    log_collision: Tensor | None = None
    """log sum_v q_v^2 [N]."""


def sparse_log_probs(hidden: Tensor, weight: Tensor, ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log q [N, n] at ``ids`` [N, n] for ``q = softmax(hidden @ weight.T + bias)``.

    Args:
        hidden: [N, d], any float dtype.
        weight: [V, d] output embedding.
        ids: [N, n] int64 token ids; repeats are fine.
        bias: [V] or None.

    Returns:
        [N, n] nats, float32 (float64 for float64 inputs). Differentiable in hidden, weight and bias.
    """
    return sparse_scores(Head(weight, bias), hidden, ids).logp


def sparse_scores(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    entropy: bool = False,
    log_collision: bool = False,
    chunk: int | None = None,
) -> Scores:
    """Log-probabilities at ``ids`` and, where asked for, entropy and collision of every position.

    Args:
        head: the output head; frozen parameters get no gradient and pay for none.
        hidden: [N, d].
        ids: [N, n] int64.
        entropy: also H(q) [N].
        log_collision: also log sum_v q_v^2 [N].
        chunk: positions whose logits exist at a time; chosen from the vocabulary's size when None.
    """
    logp, h, c = _SparseScores.apply(
        hidden, head.weight, head.bias, ids, head, entropy, log_collision, chunk or chunk_rows(head)
    )
    return Scores(logp, h if entropy else None, c if log_collision else None)


def chunk_rows(head: Head) -> int:
    """Positions whose logits exist at a time."""
    budget = _CHUNK_BYTES.get(head.weight.device.type, _CHUNK_BYTES["cpu"])
    return max(16, budget // (4 * head.vocab_size))


def logit_chunks(
    head: Head, hidden: Tensor, chunk: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """``(rows, logits [C, V])`` over all positions; a chunk's logits are the caller's to overwrite."""
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, min(start + chunk, hidden.shape[0]))
        yield rows, logits(head, hidden[rows], dtype)


class _SparseScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        head: Head,
        entropy: bool,
        log_collision: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(hidden, weight)
        wide = accumulation_dtype(dtype)
        n = hidden.shape[0]
        logp = hidden.new_empty(ids.shape, dtype=wide)
        log_z = hidden.new_empty(n, dtype=wide)
        h = hidden.new_empty(n if entropy else 0, dtype=wide)
        c = hidden.new_empty(n if log_collision else 0, dtype=wide)
        for rows, z in logit_chunks(head, hidden, chunk, dtype):
            log_z[rows] = torch.logsumexp(z, -1)
            logp[rows] = z.gather(-1, ids[rows]) - log_z[rows, None]
            if entropy or log_collision:
                p = z.sub_(log_z[rows, None]).exp_()
                if log_collision:
                    c[rows] = p.square().sum(-1).log()
                if entropy:
                    h[rows] = torch.special.entr(p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, ids, log_z, h, c)
        ctx.head, ctx.dtype, ctx.chunk = head, dtype, chunk
        # A statistic that is only logged sends no gradient back, and its backward costs nothing.
        ctx.set_materialize_grads(False)
        return logp, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, log_z, h, c = ctx.saved_tensors
        # Rebuilt from the saved tensors, so that autograd's version counters guard them.
        head = Head(weight, bias, ctx.head.scale, ctx.head.softcap)
        g_logp, g_h, g_c = grads
        if g_logp is None:
            g_logp = torch.zeros(ids.shape, dtype=log_z.dtype, device=ids.device)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=log_z.dtype) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=log_z.dtype) if wants_bias else None
        for rows, z in logit_chunks(head, hidden, ctx.chunk, ctx.dtype):
            slope = None if head.softcap is None else 1 - (z / head.softcap).square_()
            p = z.sub_(log_z[rows, None]).exp_()
            d = _logit_gradient(
                p,
                ids[rows],
                g_logp[rows],
                (g_h[rows], h[rows]) if g_h is not None else None,
                (g_c[rows], c[rows]) if g_c is not None else None,
            )
            if slope is not None:
                d *= slope
            if head.scale != 1.0:
                d *= head.scale
            if d_bias is not None:
                d_bias += d.sum(0)
            _through_weight(head, hidden[rows], d, ctx.dtype, d_hidden, d_weight, rows)
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        if d_bias is not None:
            d_bias = d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None, None


def _logit_gradient(
    p: Tensor,
    ids: Tensor,
    g_logp: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    collision: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient [C, V] of one chunk's (capped, scaled) logits from its probabilities ``p`` [C, V].

    d H / d z = -p (log p + H);  d log sum p^2 / d z = 2 (p^2 / sum p^2 - p).
    ``entropy`` and ``collision`` are pairs of (gradient [C], value [C]). ``p`` is overwritten.
    """
    pull = g_logp.sum(-1, keepdim=True)
    dense = None
    if entropy is not None:
        g, h = entropy
        dense = g[:, None] * (torch.special.entr(p) - p * h[:, None])
    if collision is not None:
        g, c = collision
        term = 2 * g[:, None] * (p.square() / c.exp()[:, None] - p)
        dense = term if dense is None else dense.add_(term)
    d = p.mul_(-pull)
    if dense is not None:
        d += dense
    return d.scatter_add_(-1, ids, g_logp)


def _through_weight(
    head: Head,
    hidden: Tensor,
    d: Tensor,
    dtype: torch.dtype,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    rows: slice,
) -> None:
    """Add one chunk's logit gradient ``d`` [C, V] to the gradients of hidden states and output embedding."""
    total: Tensor | None = None
    for columns in vocabulary_slices(head, dtype):
        part = d[:, columns]
        if d_hidden is not None:
            product = matmul(part, head.weight[columns], dtype)
            total = product if total is None else total.add_(product)
        if d_weight is not None:
            d_weight[columns] += matmul(part.T, hidden, dtype)
    if d_hidden is not None and total is not None:
        d_hidden[rows] = total.to(d_hidden.dtype)
