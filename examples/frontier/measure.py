"""What a policy does: its reward and its KL on own samples, and its KL on held-out pairs while it trained."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import tdpo
from tdpo.core.demo.corpus import sentiment
from tdpo.core.demo.measure import Estimate
from tdpo.core.demo.sampling import Sample, sample
from tdpo.core.divergence import forward_kl, whole_kl
from tdpo.core.evaluating.scorer import PairScorer

_BATCH_SIZE = 64


def measure_samples(
    policy: Any, reference: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int, top_k: Sequence[int]
) -> dict[str, Any]:
    """One sample a prompt from ``policy``: its reward, and exactly how far the policy is from ``reference``.

    Returns:
        ``reward`` and ``reward_error``, its standard error over samples; ``kl``, KL(reference || policy)
        summed over a completion's tokens, in nats (the paper's sequential KL), and ``kl_error``;
        ``reverse_kl``, KL(policy || reference); for each k of ``top_k``, ``kl_top_k``, the sum of
        p log(p / q) over the reference's k likeliest tokens alone, and ``kl_bucket_k``, with one term for
        all the rest; ``tokens``, a mean length.
    """
    samples = sample(policy, tokenizer, prompts, seed=seed, quiet=True)
    reward = Estimate.of([sentiment(p + s.text) for p, s in zip(prompts, samples, strict=True)])
    sums: dict[str, list[float]] = {}
    for start in range(0, len(samples), _BATCH_SIZE):
        for name, values in _divergences(policy, reference, samples[start : start + _BATCH_SIZE], top_k):
            sums.setdefault(name, []).extend(values)
    return {
        "reward": reward.mean,
        "reward_error": reward.error,
        "kl_error": Estimate.of(sums["kl"]).error,
        **{name: statistics.fmean(values) for name, values in sums.items()},
        "tokens": statistics.fmean(len(s.completion_ids) for s in samples),
    }


@torch.no_grad()
def _divergences(
    policy: Any, reference: Any, samples: Sequence[Sample], top_k: Sequence[int]
) -> list[tuple[str, list[float]]]:
    """By name, sums over the completion tokens of each sample, in nats."""
    rows = [torch.tensor(s.prompt_ids + s.completion_ids) for s in samples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    position = torch.arange(ids.shape[1] - 1)
    starts = torch.tensor([[len(s.prompt_ids)] for s in samples])
    ends = torch.tensor([[len(row)] for row in rows])
    # Position t predicts token t + 1. The model is causal: what pads on the right changes nothing before it.
    mask = (position + 1 >= starts) & (position + 1 < ends)
    log_p, log_q = (model(input_ids=ids).logits[:, :-1].log_softmax(-1) for model in (reference, policy))
    found = {"kl": whole_kl(log_p, log_q), "reverse_kl": whole_kl(log_q, log_p)}
    for k in top_k:
        top_p, top = log_p.topk(k, dim=-1)
        top_q = log_q.gather(-1, top)
        found[f"kl_top_{k}"] = whole_kl(top_p, top_q)
        found[f"kl_bucket_{k}"] = forward_kl(top_p, top_q, k, mask, vocab_size=log_p.shape[-1])
    return [(name, (value * mask).sum(-1).tolist()) for name, value in found.items()]


def measure_pairs(policy: Any, cache: Path) -> dict[str, float]:
    """Mean over the pairs of a held-out cache.

    Returns:
        ``chosen`` and ``rejected``, the sequential KL(reference || policy) in nats, exact where the cache is;
        ``accuracy``, the share of pairs whose chosen side has the larger log-ratio.
    """
    reader = tdpo.open_cache(cache)
    chosen: list[float] = []
    rejected: list[float] = []
    right: list[bool] = []
    for batch in PairScorer(policy, reader).score(range(len(reader))):
        for side, sums in ((batch.chosen, chosen), (batch.rejected, rejected)):
            sums += side.sum(side.forward_kl).tolist()
        ratios = [side.sum(side.log_ratio) for side in (batch.chosen, batch.rejected)]
        right += (ratios[0] > ratios[1]).tolist()
    return {
        "chosen": statistics.fmean(chosen),
        "rejected": statistics.fmean(rejected),
        "accuracy": statistics.fmean(right),
    }
