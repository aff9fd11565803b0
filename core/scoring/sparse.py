"""The one primitive: log-probabilities at a few token ids per position, without the [N, V] logits.

The forward pass walks over chunks of positions and keeps the log-normaliser of each. The backward pass
recomputes logits slice by slice of the vocabulary, at all positions at once where they fit: a slice of the
weight's gradient is then finished in one product, and no second copy of it is summed up in float32. Entropy,
collision and, where the reference's whole distribution is at hand, both KL divergences ride along.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..divergence import whole_kl
from .chunking import cache_sized, chunk_rows, steps, tiles
from .exact import WholeReference
from .head import Head
from .projection import Gradients, Projection, accumulation_dtype, compute_dtype
from .softmax import Incoming, normalise, through_cap


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
    columns: int | None = None,
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
        chunk: positions whose logits exist at a time; chosen from the vocabulary and free memory when None.
        columns: tokens of the vocabulary whose logits exist at a time on the way back, at as many positions
            as a chunk has room for; chosen when None.
    """
    if reference is None and (forward_kl or reverse_kl):
        raise ValueError("a divergence needs the reference")
    wanted = _Wanted(entropy, log_collision, forward_kl, reverse_kl)
    if not (forward_kl or reverse_kl):
        reference = None
    # Chunks of both models' logits lie side by side.
    chunk = chunk or max(1, chunk_rows(head) // (1 if reference is None else 2))
    inner, up = head.low_rank(hidden) or (None, None)
    plan = _Plan(ids, head.scale, head.softcap, wanted, reference, chunk, columns)
    logp, *dense = _SparseScores.apply(hidden, head.weight, head.bias, inner, up, plan)
    return Scores(logp, *(value if asked else None for value, asked in zip(dense, wanted, strict=True)))


def logit_chunks(
    head: Head, hidden: Tensor, chunk: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """``(rows, logits [C, V])`` over all positions; a chunk's logits are the caller's to overwrite."""
    projection = Projection.of(head, hidden, dtype).holding()
    for rows in steps(len(hidden), chunk):
        yield rows, projection.logits(rows)


class _Wanted(NamedTuple):
    """Which statistics that take the whole distribution are asked for, in the order of :class:`Scores`."""

    entropy: bool
    log_collision: bool
    forward_kl: bool
    reverse_kl: bool


class _Plan(NamedTuple):
    """What of a call has no gradient."""

    ids: Tensor
    scale: float
    softcap: float | None
    wanted: _Wanted
    reference: WholeReference | None
    chunk: int
    columns: int | None

    def projection(self, inputs: Sequence[Tensor | None], dtype: torch.dtype) -> Projection:
        """The head in front of the hidden states, of the tensors that autograd guards."""
        hidden, weight, bias, inner, up = inputs
        assert hidden is not None
        assert weight is not None
        low_rank = None if inner is None or up is None else (inner, up)
        return Projection.of(Head(weight, bias, self.scale, self.softcap), hidden, dtype, low_rank)


class _Values(NamedTuple):
    """What the forward pass finds, flat; a statistic that is not asked for has no elements."""

    logp: Tensor
    entropy: Tensor
    log_collision: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    log_z: Tensor
    """The policy's log-normalisers [N]."""
    ref_log_z: Tensor
    """The reference's."""

    @classmethod
    def empty(cls, plan: _Plan, like: Tensor, dtype: torch.dtype) -> "_Values":
        n = len(plan.ids)
        counts = [n if asked else 0 for asked in (*plan.wanted, True, plan.reference is not None)]
        flat = (like.new_empty(count, dtype=dtype) for count in counts)
        return cls(like.new_empty(plan.ids.shape, dtype=dtype), *flat)

    def find(self, plan: _Plan, z: Tensor, z_p: Tensor | None, rows: slice, *, log_probs: bool) -> None:
        """Write those of a chunk's logits [C, V], of the policy and the reference; both are overwritten."""
        wanted = plan.wanted
        for part in cache_sized(z):
            at = slice(rows.start + part.start, rows.start + part.stop)
            said = normalise(
                z[part],
                plan.ids[at],
                entropy=wanted.entropy,
                log_collision=wanted.log_collision,
                log_probs=log_probs or z_p is not None,
            )
            self.logp[at], self.log_z[at] = said.logp, said.log_z
            if said.entropy is not None:
                self.entropy[at] = said.entropy
            if said.log_collision is not None:
                self.log_collision[at] = said.log_collision
            if z_p is not None:
                self.ref_log_z[at] = normalise(z_p[part], plan.ids[at], log_probs=True).log_z
                if wanted.forward_kl:
                    self.forward_kl[at] = whole_kl(z_p[part], z[part])
                if wanted.reverse_kl:
                    self.reverse_kl[at] = whole_kl(z[part], z_p[part])

    def incoming(self, plan: _Plan, grads: Sequence[Tensor | None]) -> Incoming:
        """The gradients of the outputs, with the head's scale taken into them."""
        logp, entropy, collision, forward, reverse = (None if g is None else g * plan.scale for g in grads)
        if logp is None:
            logp = torch.zeros(plan.ids.shape, dtype=self.log_z.dtype, device=plan.ids.device)
        return Incoming(
            plan.ids,
            logp,
            logp.sum(-1),
            None if entropy is None else (entropy, self.entropy),
            None if collision is None else (collision, self.log_collision),
            forward,
            None if reverse is None else (reverse, self.reverse_kl),
        )


class _SparseScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        inner: Tensor | None,
        up: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        dtype, n = compute_dtype(hidden, weight), len(hidden)
        inputs = (hidden, weight, bias, inner, up)
        projection = plan.projection(inputs, dtype).holding()
        values = _Values.empty(plan, hidden, accumulation_dtype(dtype))
        # Where one chunk holds all, the way back starts from its log-probs: it needs room for as many anyway.
        keep = n <= plan.chunk and any(ctx.needs_input_grad)
        ctx.kept = None
        memory = projection.memory(min(n, plan.chunk), len(weight))
        for rows in steps(n, plan.chunk):
            z = projection.logits(rows, out=memory)
            reference = plan.reference
            z_p = None if reference is None else reference.logits(rows, slice(0, len(weight)))
            values.find(plan, z, z_p, rows, log_probs=keep)
            ctx.kept = (z, z_p) if keep else None
            # Or the next would be made beside it.
            del z_p
        ctx.save_for_backward(*inputs, *values[1:])
        ctx.plan, ctx.dtype = plan, dtype
        # A statistic that is only logged sends no gradient back, and its backward costs nothing.
        ctx.set_materialize_grads(False)
        return tuple(values[:5])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, values = ctx.saved_tensors[:5], _Values(torch.empty(0), *ctx.saved_tensors[5:])
        plan: _Plan = ctx.plan
        # A second way back through the same graph has to recompute: this one overwrites.
        kept, ctx.kept = ctx.kept, None
        incoming = values.incoming(plan, grads)
        projection = plan.projection(inputs, ctx.dtype)
        sums = Gradients(projection, ctx.needs_input_grad[:5])
        n, vocab_size = len(plan.ids), projection.head.vocab_size
        height, width = tiles(plan.chunk, n, vocab_size, summed=sums.summed, columns=plan.columns)
        memory = None if kept is not None else projection.memory(height, width)
        # Backward may be called under autocast; what is accumulated in float32 stays so.
        with torch.autocast(plan.ids.device.type, enabled=False):
            for columns in steps(vocab_size, width):
                for rows in steps(n, height):
                    reference = plan.reference if incoming.divergence else None
                    log_p = None
                    if kept is None:
                        log_q = projection.logits(rows, columns, memory).sub_(values.log_z[rows, None])
                        log_p = None if reference is None else reference.logits(rows, columns)
                        log_p = None if log_p is None else log_p.sub_(values.ref_log_z[rows, None])
                    else:
                        log_q = kept[0][rows, columns]
                        log_p = None if reference is None else kept[1][rows, columns]
                    sums.add(
                        _logit_gradient(plan, values, incoming, log_q, log_p, rows, columns), rows, columns
                    )
        found = (sums.hidden, sums.weight, sums.bias, sums.inner, sums.up)
        gradients = (None if d is None else d.to(x.dtype) for x, d in zip(inputs, found, strict=True))
        return *gradients, None


def _logit_gradient(
    plan: _Plan,
    values: _Values,
    incoming: Incoming,
    log_q: Tensor,
    log_p: Tensor | None,
    rows: slice,
    columns: slice,
) -> Tensor:
    """Overwrite one tile's log-probs [C, Vs] by the gradient of what the head's cap was put on."""
    for part in cache_sized(log_q):
        at = slice(rows.start + part.start, rows.start + part.stop)
        z = None if plan.softcap is None else log_q[part] + values.log_z[at, None]
        d = incoming.into_logits(log_q[part], None if log_p is None else log_p[part], at, columns)
        if z is not None and plan.softcap is not None:
            through_cap(d, z, plan.softcap)
    return log_q
