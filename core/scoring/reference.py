"""What the cache holds of the reference at each position: log-prob, entropy, a sample of its distribution."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .chunking import cache_sized, chunk_rows
from .distribution import Sampling, describe
from .head import Head
from .projection import compute_dtype
from .sparse import logit_chunks

# Fewer positions at a time would read the output embedding too often.
_CHUNK_ROWS = 128


@dataclass(frozen=True)
class ReferenceScores:
    """Flat per-token statistics of the reference, in nats. Distribution entries are head first."""

    logp: Tensor
    """[N] float32: log ref(y_t | s_t)."""
    entropy: Tensor
    """[N] float32: H(ref(.|s_t)) over the full vocabulary."""
    dist_ids: Tensor
    """[N, k + m] int64: the likeliest tokens, then draws from the rest."""
    dist_logp: Tensor
    """[N, k + m] float32: their log-probs; -inf where a position has no such entry."""


@torch.no_grad()
def reference_scores(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    sampling: Sampling,
    uniforms: Tensor,
    chunk: int | None = None,
) -> ReferenceScores:
    """Score ``labels`` [N] at hidden states [N, d] and sample each position's distribution.

    Args:
        head: the reference's output head.
        hidden: [N, d].
        labels: [N] int64 completion tokens.
        sampling: how many entries; the head is at most V.
        uniforms: [N, m] in [0, 1): what the m tail draws of each position are made from. With k = V there
            is no tail and m must be 0.
        chunk: positions whose logits exist at a time.
    """
    n, entries = hidden.shape[0], sampling.head + sampling.tail
    dtype = compute_dtype(hidden, head.weight)
    logp, entropy = (hidden.new_empty(n, dtype=torch.float32) for _ in range(2))
    dist_ids = labels.new_empty(n, entries)
    dist_logp = hidden.new_empty(n, entries, dtype=torch.float32)
    for rows, z in logit_chunks(head, hidden, chunk or max(_CHUNK_ROWS, chunk_rows(head)), dtype):
        # Describing waits for the GPU; it should not do so for every part.
        for part in [slice(0, len(z))] if z.is_cuda else cache_sized(z):
            at = slice(rows.start + part.start, rows.start + part.stop)
            said = describe(z[part], labels[at], sampling, uniforms[at])
            logp[at], entropy[at], dist_ids[at], dist_logp[at] = said
    return ReferenceScores(logp, entropy, dist_ids, dist_logp)


def tail_uniforms(seed: int, pair_id: str, side: str, tokens: int, draws: int) -> np.ndarray:
    """Uniform numbers [tokens, draws] in [0, 1), float32, from a generator keyed by (seed, pair, side).

    Position ``t`` takes row ``t``, so that a resumed, re-sharded or distributed build draws the same; the
    global random state is not touched.
    """
    digest = hashlib.blake2b(f"{seed}/{pair_id}/{side}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.random((tokens, draws), dtype=np.float32)
