"""Online TDPO2: policy and reference both in memory, separate sequences, dense KL over the whole vocabulary.

What a cache replaces: the loop of the paper (Zeng et al. 2024, arXiv 2404.11999), written plainly and without
waste: both models in one pass each over the chosen and the rejected sequences of a batch, logits in full, as
``transformers`` returns them, and only those of completion tokens normalised.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tdpo.core.scoring.layout import completion_mask, lay_out, to_padded


def batch_of(pairs: Any, device: Any) -> dict[str, Tensor]:
    """``B`` pairs as 2B right-padded rows ``prompt | completion``, chosen first, and where to score them."""
    layout = lay_out(pairs)
    names = ("input_ids", "attention_mask", "positions", "labels", "lengths")
    return {name: getattr(layout, name).to(device) for name in names}


def tdpo2_loss(
    policy: Any, reference: Any, batch: Mapping[str, Tensor], beta: float = 0.1, alpha: float = 0.5
) -> Tensor:
    """The mean loss of a batch's pairs, differentiable in the policy."""
    labels = batch["labels"][:, None]
    logp = _log_probs(policy, batch)
    with torch.no_grad():
        ref_logp = _log_probs(reference, batch)
    log_ratio = (logp - ref_logp).gather(1, labels)[:, 0]
    forward_kl = (ref_logp.exp() * (ref_logp - logp)).sum(1)
    mask = completion_mask(batch["lengths"])
    ratio_chosen, ratio_rejected = to_padded(log_ratio, mask).sum(1).chunk(2)
    kl_chosen, kl_rejected = to_padded(forward_kl, mask).sum(1).chunk(2)
    margin = ratio_chosen - ratio_rejected - alpha * (kl_rejected - kl_chosen.detach())
    return -logsigmoid(beta * margin).mean()


def _log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Of every token of the vocabulary at every completion position: [N, V] float32."""
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return found.logits.flatten(0, 1)[batch["positions"]].float().log_softmax(-1)
