"""The model's side of scoring: its body's hidden states at completion positions, its head's statistics.

The same code runs for the reference and for the policy: a policy that equals its reference gives a
log-ratio of zero, and a mistake cannot sit on one side only.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .head import Head, logits
from .sparse import Scores, sparse_scores


def completion_hidden(model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states [N, d] of a causal language model's body at flat ``positions`` of ``input_ids``."""
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden = output.last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[positions]


def enable_scoring(model: Any) -> None:
    """Let ``model(..., score_positions=, score_ids=, ...)`` return :class:`Scores`.

    The scored forward replaces the instance's ``forward`` rather than reaching around it, so that
    wrappers around the model (DDP, FSDP, autocast) stay in the path. Calls without ``score_positions``
    are the model's own.

    Raises:
        ModelError: the model's logits are not its hidden states through a :class:`Head`.
    """
    check_head(model)
    plain_forward = model.forward

    def forward(
        *args: Any,
        score_positions: Tensor | None = None,
        score_ids: Tensor | None = None,
        score_entropy: bool = False,
        score_log_collision: bool = False,
        **kwargs: Any,
    ) -> Any:
        if score_positions is None or score_ids is None:
            return plain_forward(*args, **kwargs)
        hidden = completion_hidden(model, kwargs["input_ids"], kwargs["attention_mask"], score_positions)
        scores: Scores = sparse_scores(
            Head.of(model), hidden, score_ids, entropy=score_entropy, log_collision=score_log_collision
        )
        return scores

    model.forward = forward


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare our logits with the model's own on a few tokens, before any are trusted.

    Raises:
        ModelError: they differ, because the architecture does something to its logits that
            :class:`Head` does not know.
    """
    head = Head.of(model)
    was_training = model.training
    model.eval()
    try:
        count = min(8, head.vocab_size)
        ids = torch.arange(count, device=head.weight.device)[None]
        mask = torch.ones_like(ids)
        want = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        hidden = completion_hidden(model, ids, mask, torch.arange(count, device=ids.device))
        got = logits(head, hidden, torch.promote_types(hidden.dtype, head.weight.dtype)).float()
    finally:
        model.train(was_training)
    tolerance = 1e-3 if head.weight.dtype in (torch.float32, torch.float64) else 5e-2
    scale = want.abs().max().clamp(min=1.0)
    if want.shape != got.shape or not bool((want - got).abs().max() <= tolerance * scale):
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way tdpo does not know (its own and ours "
            "differ); it cannot be scored without full logits, so it is not supported yet"
        )
