"""KL divergences between reference and policy: of whole distributions, and forward KL from a sparse sample.

The sparse cache holds, per position, the ``k`` likeliest tokens of the reference ``p`` (the head) and ``m``
tokens drawn with replacement from ``p`` restricted to the rest (the tail), each with its reference log-prob.
With ``r = q / p`` and the two tail masses known exactly, for any constant ``lambda``

    KL^ = sum_head p (-log r) + p_tail mean_draws(-log r) + lambda (p_tail mean_draws(r) - q_tail)

is an unbiased estimate of KL(p || q), and so is its gradient: the last bracket has expectation zero.
"""

import torch
from torch import Tensor

# Keeps r finite in float32; a drawn token has log r <= -log p, and p < e^-60 is never drawn.
_MAX_LOG_RATIO = 60.0

ESTIMATORS = ("fitted", "nonnegative", "log_ratio")


def whole_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [C] in nats of whole distributions, given as log-probs [C, V].

    Infinite where q rules out what p does not; tokens that p rules out add nothing.
    """
    p = log_p.exp()
    return torch.where(p > 0, log_p - log_q, 0).mul_(p).sum(-1)


def forward_kl(
    ref_logp: Tensor, logp: Tensor, head: int, mask: Tensor, *, estimator: str = "fitted", vocab_size: int
) -> Tensor:
    """KL(p || q) per token [B, T] in nats, with gradient through ``logp``.

    Args:
        ref_logp: [B, T, k + m] reference log-probs of the cached tokens, head first; -inf where a token has
            fewer entries than that, in its head or among its draws.
        logp: [B, T, k + m] the policy's log-probs of the same tokens.
        head: k; the remaining entries are tail draws. With no draws (m = 0) the tail is one bucket on
            both sides: never negative, never above the exact KL, and biased low unless k = V.
        mask: [B, T] bool, True at completion tokens.
        estimator: ``fitted`` (lambda by regression over the completion's draws: least error, a bias of
            about one per cent), ``nonnegative`` (lambda = 1: unbiased, every term >= 0, heavy-tailed far
            from the reference) or ``log_ratio`` (lambda = 0: unbiased, noisy near the reference).
        vocab_size: V; with k = V the head is the whole distribution and the result is exact.

    At policy = reference all three are 0. The gradient is 0 too for ``fitted`` and ``nonnegative``; for
    ``log_ratio`` only its expectation over draws is.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"no estimator {estimator!r}; one of {', '.join(ESTIMATORS)}")
    # Entries of probability zero (a vocabulary padded with -inf) contribute nothing: p log p -> 0.
    possible = (ref_logp > -torch.inf) & mask[..., None]
    p = torch.where(possible, ref_logp, -torch.inf).exp()
    log_r = torch.where(possible, logp - torch.where(possible, ref_logp, 0), 0)
    head_p, head_log_r = p[..., :head], log_r[..., :head]
    from_head = -(head_p * head_log_r).sum(-1)
    if head == vocab_size:
        return from_head
    p_tail = (1 - head_p.sum(-1)).clamp(min=0)
    if head == ref_logp.shape[-1]:
        q_head = torch.where(possible, logp, -torch.inf).exp().sum(-1)
        return torch.where(mask, from_head + _bucket(p_tail, 1 - q_head), 0)
    # r - 1 by expm1, and p_tail - q_tail as sum_head (q - p): both keep their digits near the reference.
    excess = log_r.clamp(max=_MAX_LOG_RATIO).expm1()
    tail_log_r, tail_excess, drawn = log_r[..., head:], excess[..., head:], possible[..., head:]
    share = p_tail / drawn.sum(-1).clamp(min=1)
    control = share * tail_excess.sum(-1) + (head_p * excess[..., :head]).sum(-1)
    weight = _control_weight(share, tail_log_r, tail_excess, drawn, estimator)
    return torch.where(mask, from_head - share * tail_log_r.sum(-1) + weight * control, 0)


def _bucket(p_tail: Tensor, q_tail: Tensor) -> Tensor:
    """``p_tail (log p_tail - log q_tail)`` [B, T]: everything outside the head as one outcome."""
    tiny = torch.finfo(p_tail.dtype).tiny
    p_positive, q_positive = p_tail.clamp(min=tiny), q_tail.clamp(min=tiny)
    return torch.where(p_tail > 0, p_tail * (p_positive.log() - q_positive.log()), 0)


def _control_weight(share: Tensor, log_r: Tensor, excess: Tensor, drawn: Tensor, estimator: str) -> Tensor:
    """lambda, detached: a constant, or [B, 1] fitted over each completion's own draws.

    lambda = Cov / Var, each added up over the completion's tokens: of the sum over a token's draws of log r
    and of r, times ``share``, the tail's mass over the number of draws; clamped to [0, 1]; 1, its limit,
    where the draws do not vary, which is where the policy equals the reference (and where there is one draw).
    ``excess`` is r - 1, ``drawn`` [B, T, m] tells draws from padding.
    """
    if estimator != "fitted":
        return share.new_full((), 1.0 if estimator == "nonnegative" else 0.0)
    with torch.no_grad():
        count = drawn.sum(-1)
        # A ratio far above one would overflow when squared; the weight it asks for is 0 anyway.
        excess = excess.clamp(max=1e9)
        mean = excess.sum(-1, keepdim=True) / count.clamp(min=1)[..., None]
        deviation = torch.where(drawn, excess - mean, 0)
        # m draws vary by m times their sample variance, which divides by m - 1.
        scale = share.square() * count / (count - 1).clamp(min=1)
        covariance = (scale * (deviation * log_r).sum(-1)).sum(-1, keepdim=True)
        variance = (scale * deviation.square().sum(-1)).sum(-1, keepdim=True)
        return torch.where(variance > 0, covariance / variance, 1.0).clamp(0, 1)
