"""What the cache holds of the reference at each position: log-prob, entropy, a sample of its distribution."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .head import Head, compute_dtype
from .sparse import chunk_rows, logit_chunks


@dataclass(frozen=True)
class ReferenceScores:
    """Flat per-token statistics of the reference, in nats. Distribution entries are head first."""

    logp: Tensor
    """[N] float32: log ref(y_t | s_t)."""
    entropy: Tensor
    """[N] float32: H(ref(.|s_t)) over the full vocabulary."""
    dist_ids: Tensor
    """[N, k + m] int64: the k likeliest tokens, then m draws from the rest."""
    dist_logp: Tensor
    """[N, k + m] float32: their log-probs."""


@torch.no_grad()
def reference_scores(
    head: Head, hidden: Tensor, labels: Tensor, k: int, uniforms: Tensor, chunk: int | None = None
) -> ReferenceScores:
    """Score ``labels`` [N] at hidden states [N, d] and sample each position's distribution.

    Args:
        head: the reference's output head.
        hidden: [N, d].
        labels: [N] int64 completion tokens.
        k: entries of the head, at most V.
        uniforms: [N, m] in [0, 1): what the m tail draws of each position are made from. With k = V there
            is no tail and m must be 0.
        chunk: positions whose logits exist at a time.
    """
    n, m = hidden.shape[0], uniforms.shape[1]
    dtype = compute_dtype(hidden, head.weight)
    logp, entropy = (hidden.new_empty(n, dtype=torch.float32) for _ in range(2))
    dist_ids = labels.new_empty(n, k + m)
    dist_logp = hidden.new_empty(n, k + m, dtype=torch.float32)
    for rows, z in logit_chunks(head, hidden, chunk or chunk_rows(head), dtype):
        log_p = z.sub_(torch.logsumexp(z, -1, keepdim=True))
        logp[rows] = log_p.gather(-1, labels[rows, None])[:, 0]
        p = log_p.exp()
        entropy[rows] = torch.special.entr(p).sum(-1)
        top = log_p.topk(k, -1)
        dist_ids[rows, :k], dist_logp[rows, :k] = top.indices, top.values
        if m:
            drawn = _draw_tail(log_p, p, top.indices, uniforms[rows])
            dist_ids[rows, k:], dist_logp[rows, k:] = drawn, log_p.gather(-1, drawn)
    return ReferenceScores(logp, entropy, dist_ids, dist_logp)


def _draw_tail(log_p: Tensor, p: Tensor, top: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids [C, m] drawn with replacement from ``p`` [C, V] outside ``top`` [C, k], by inverse CDF.

    ``p`` is overwritten. Where the rest is so improbable that its mass underflows, its probabilities are
    taken relative to its likeliest token.
    """
    rest = p.scatter_(-1, top, 0)
    total = rest.sum(-1)
    if bool((total < 1e-30).any()):
        relative = log_p.scatter(-1, top, -torch.inf)
        peak = relative.amax(-1, keepdim=True)
        relative = (relative - torch.where(peak > -torch.inf, peak, 0)).exp()
        rest = torch.where((total < 1e-30)[:, None], relative, rest)
    cdf = rest.cumsum(-1)
    end = cdf[:, -1:]
    # A target equal to the last value would fall past the last token that has any probability.
    target = torch.minimum(uniforms.to(cdf.dtype) * end, torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(cdf, target, right=True).clamp(max=p.shape[-1] - 1)


def tail_uniforms(seed: int, pair_id: str, side: str, tokens: int, draws: int) -> np.ndarray:
    """Uniform numbers [tokens, draws] in [0, 1), float32, from a generator keyed by (seed, pair, side).

    Position ``t`` takes row ``t``, so that a resumed, re-sharded or distributed build draws the same; the
    global random state is not touched.
    """
    digest = hashlib.blake2b(f"{seed}/{pair_id}/{side}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.random((tokens, draws), dtype=np.float32)
