"""From the policy's scores and the cache's columns to the two sides an objective is given."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..divergence import forward_kl
from ..objective import Completions
from .added import added_sides
from .layout import completion_mask, to_padded
from .sparse import Scores


def completions(
    scores: Scores,
    batch: Mapping[str, Tensor],
    *,
    head: int,
    vocab_size: int,
    estimator: str,
    kl_gradient: bool,
) -> tuple[Completions, Completions]:
    """Chosen and rejected side of a batch of ``B`` pairs.

    Args:
        scores: of the policy, flat: log-probs [N, 1 + n] at ``batch["score_ids"]``, the completion token
            first, then the cached sample of the reference's distribution; exact divergences, where they
            are there, come before the estimate.
        batch: what :func:`tdpo.core.training.data.collate` made.
        head: k, the entries of the sample that are its head.
        vocab_size: V.
        estimator: of the forward KL.
        kl_gradient: False where the KL is only logged.
    """
    mask = completion_mask(batch["lengths"])
    logp = to_padded(scores.logp, mask)
    fields: dict[str, Any] = {
        "mask": mask,
        "logp": logp[..., 0],
        "ref_logp": to_padded(batch["ref_logp"], mask).to(logp.dtype),
    }
    for name in ("forward_kl", "reverse_kl"):
        if (exact := getattr(scores, name)) is not None:
            fields[name] = to_padded(exact, mask)
    if "forward_kl" not in fields and "dist_logp" in batch and logp.shape[-1] > 1:
        with torch.set_grad_enabled(kl_gradient and torch.is_grad_enabled()):
            fields["forward_kl"] = forward_kl(
                to_padded(batch["dist_logp"], mask).to(logp.dtype),
                logp[..., 1:],
                head,
                mask,
                estimator=estimator,
                vocab_size=vocab_size,
            )
    if scores.entropy is not None:
        fields["entropy"] = to_padded(scores.entropy, mask)
    if scores.log_collision is not None:
        fields["log_collision"] = to_padded(scores.log_collision, mask)
    if "ref_entropy" in batch:
        fields["ref_entropy"] = to_padded(batch["ref_entropy"], mask).to(logp.dtype)
    pairs = len(mask) // 2
    chosen, rejected = added_sides(batch, mask)
    return (
        Completions(**{name: value[:pairs] for name, value in fields.items()}, extra=chosen),
        Completions(**{name: value[pairs:] for name, value in fields.items()}, extra=rejected),
    )
