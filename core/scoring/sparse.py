"""The one primitive: log-probabilities at a few token ids per position, without the [N, V] logits.

The forward pass walks over chunks of positions and keeps the log-normaliser of each; the backward pass
recomputes a chunk's logits. With ``G`` the gradient of the output, the gradient of a chunk's logits is
``scatter(G at ids) - softmax * G.sum(-1)``. Entropy, collision and, where the reference's whole distribution
is at hand, both KL divergences ride along in the same loops.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..divergence import whole_kl
from .exact import WholeReference
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
    forward_kl: Tensor | None = None
    """KL(p || q) [N], exact."""
    reverse_kl: Tensor | None = None
    """KL(q || p) [N], exact."""


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
    reference: WholeReference | None = None,
    forward_kl: bool = False,
    reverse_kl: bool = False,
    chunk: int | None = None,
) -> Scores:
    """Log-probabilities at ``ids`` and, where asked for, what takes the whole distribution.

    Args:
        head: the output head; frozen parameters get no gradient and pay for none.
        hidden: [N, d].
        ids: [N, n] int64.
        entropy: also H(q) [N].
        log_collision: also log sum_v q_v^2 [N].
        reference: p at the same positions, for the divergences; gets no gradient.
        forward_kl: also KL(p || q) [N].
        reverse_kl: also KL(q || p) [N].
        chunk: positions whose logits exist at a time; chosen from the vocabulary's size when None.
    """
    if reference is None and (forward_kl or reverse_kl):
        raise ValueError("a divergence needs the reference")
    wanted = _Wanted(entropy, log_collision, forward_kl, reverse_kl)
    if not (forward_kl or reverse_kl):
        reference = None
    # Chunks of both models' logits lie side by side.
    chunk = chunk or max(1, chunk_rows(head) // (1 if reference is None else 2))
    logp, *dense = _SparseScores.apply(hidden, head.weight, head.bias, ids, head, wanted, reference, chunk)
    return Scores(logp, *(value if asked else None for value, asked in zip(dense, wanted, strict=True)))


class _Wanted(NamedTuple):
    """Which statistics that take the whole distribution are asked for, in the order of :class:`Scores`."""

    entropy: bool
    log_collision: bool
    forward_kl: bool
    reverse_kl: bool


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
        wanted: _Wanted,
        reference: WholeReference | None,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        dtype = compute_dtype(hidden, weight)
        wide = accumulation_dtype(dtype)
        n = hidden.shape[0]
        logp = hidden.new_empty(ids.shape, dtype=wide)
        log_z = hidden.new_empty(n, dtype=wide)
        h, c, f, r = (hidden.new_empty(n if asked else 0, dtype=wide) for asked in wanted)
        # Autocast has had its say in dtype; inside, it would round what is accumulated in float32.
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, z in logit_chunks(head, hidden, chunk, dtype):
                log_z[rows] = torch.logsumexp(z, -1)
                logp[rows] = z.gather(-1, ids[rows]) - log_z[rows, None]
                if not any(wanted):
                    continue
                log_q = z.sub_(log_z[rows, None])
                if reference is not None:
                    log_p = reference.log_probs(rows)
                    if wanted.forward_kl:
                        f[rows] = whole_kl(log_p, log_q)
                    if wanted.reverse_kl:
                        r[rows] = whole_kl(log_q, log_p)
                if wanted.entropy or wanted.log_collision:
                    q = log_q.exp_()
                    if wanted.log_collision:
                        c[rows] = q.square().sum(-1).log()
                    if wanted.entropy:
                        h[rows] = torch.special.entr(q).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, ids, log_z, h, c, r)
        ctx.head, ctx.dtype, ctx.chunk, ctx.reference = head, dtype, chunk, reference
        # A statistic that is only logged sends no gradient back, and its backward costs nothing.
        ctx.set_materialize_grads(False)
        return logp, h, c, f, r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, log_z, h, c, r = ctx.saved_tensors
        # Rebuilt from the saved tensors, so that autograd's version counters guard them.
        head = Head(weight, bias, ctx.head.scale, ctx.head.softcap)
        g_logp, g_h, g_c, g_f, g_r = grads
        if g_logp is None:
            g_logp = torch.zeros(ids.shape, dtype=log_z.dtype, device=ids.device)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=log_z.dtype) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=log_z.dtype) if wants_bias else None
        for rows, z in logit_chunks(head, hidden, ctx.chunk, ctx.dtype):
            slope = None if head.softcap is None else 1 - (z / head.softcap).square_()
            log_q = z.sub_(log_z[rows, None])
            pull = None
            if g_f is not None or g_r is not None:
                pull = _divergence_gradient(
                    ctx.reference.log_probs(rows),
                    log_q,
                    g_f[rows] if g_f is not None else None,
                    (g_r[rows], r[rows]) if g_r is not None else None,
                )
            d = _logit_gradient(
                log_q.exp_(),
                ids[rows],
                g_logp[rows],
                (g_h[rows], h[rows]) if g_h is not None else None,
                (g_c[rows], c[rows]) if g_c is not None else None,
            )
            if pull is not None:
                d += pull
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


def _divergence_gradient(
    log_p: Tensor, log_q: Tensor, forward: Tensor | None, reverse: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Gradient [C, V] of one chunk's logits through its divergences from the reference.

    d KL(p || q) / d z = q - p;  d KL(q || p) / d z = q (log q - log p - KL(q || p)).
    ``forward`` is a gradient [C], ``reverse`` a pair of (gradient [C], value [C]). ``log_p`` is overwritten.
    """
    q = log_q.exp()
    pull = None
    if reverse is not None:
        g, value = reverse
        # A token without probability pulls nothing, even where the other model has none for it either.
        apart = torch.where(q > 0, log_q - log_p, 0)
        pull = apart.sub_(value[:, None]).mul_(q).mul_(g[:, None])
    if forward is not None:
        term = q.sub_(log_p.exp_()).mul_(forward[:, None])
        pull = term if pull is None else pull.add_(term)
    assert pull is not None
    return pull


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
