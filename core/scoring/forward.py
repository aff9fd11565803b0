"""The model's side of scoring: its body's hidden states at completion positions, its head's statistics.

The same code runs for the reference and for the policy: a policy that equals its reference gives a
log-ratio of zero, and a mistake cannot sit on one side only.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...cache.pairs import Pair
from ..errors import ModelError
from .exact import FromHidden, FromLogProbs, WholeReference
from .head import Head
from .layout import Layout, lay_out, lay_out_shared
from .placement import input_device
from .projection import logits
from .sharing import longest_shared_row
from .sparse import Scores, sparse_scores
from .visibility import attention_mask_of

# Prompt, chosen and rejected tokens of the pairs that a model is checked on. The chosen are so many that
# positions which do not restart show.
_CHECKED = ((8, 48, 16), (5, 3, 20))


def completion_hidden(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    position_ids: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Last hidden states [N, d] of a causal language model's body; the arguments are a Layout's fields."""
    shared = {}
    if segments is not None:
        attention_mask = attention_mask_of(segments, model.config._attn_implementation, model.dtype)
        shared["position_ids"] = position_ids
    output = _body(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **shared)
    hidden = output.last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[positions.to(hidden.device)]


def _body(model: Any) -> Any:
    """All of a causal language model but its head; a peft.PeftModel's own ``base_model`` is another thing."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.base_model


def enable_scoring(model: Any, reference_head: Head | None = None) -> None:
    """Let ``model(..., score_positions=, score_ids=, ...)`` return :class:`Scores`.

    The scored forward replaces the instance's ``forward`` rather than reaching around it, so that
    wrappers around the model (DDP, FSDP, autocast) stay in the path. Calls without ``score_positions``
    are the model's own.

    Args:
        model: the policy.
        reference_head: makes whole distributions of the reference out of ``score_ref_hidden``.

    Raises:
        ModelError: the model's logits are not its hidden states through a :class:`Head`.
    """
    check_head(model)
    plain_forward = model.forward

    # generate() reads the signature: without position_ids in it, left-padded prompts would be misplaced.
    @wraps(plain_forward)
    def forward(
        *args: Any,
        score_positions: Tensor | None = None,
        score_ids: Tensor | None = None,
        score_entropy: bool = False,
        score_log_collision: bool = False,
        score_ref_hidden: Tensor | None = None,
        score_ref_logp: Tensor | None = None,
        score_forward_kl: bool = False,
        score_reverse_kl: bool = False,
        **kwargs: Any,
    ) -> Any:
        if score_positions is None or score_ids is None:
            return plain_forward(*args, **kwargs)
        hidden = completion_hidden(
            model,
            kwargs["input_ids"],
            kwargs["attention_mask"],
            score_positions,
            kwargs.get("position_ids"),
            kwargs.get("segments"),
        )
        reference: WholeReference | None = None
        if score_ref_hidden is not None and reference_head is not None:
            reference = FromHidden(reference_head, score_ref_hidden)
        elif score_ref_logp is not None:
            reference = FromLogProbs(score_ref_logp)

        def scored(hidden: Tensor) -> Scores:
            return sparse_scores(
                Head.of(model),
                hidden,
                score_ids,
                entropy=score_entropy,
                log_collision=score_log_collision,
                reference=reference,
                forward_kl=score_forward_kl,
                reverse_kl=score_reverse_kl,
            )

        return model.get_output_embeddings()(hidden, score=scored)

    model.forward = forward
    _let_head_score(model.get_output_embeddings())


def _let_head_score(module: Any) -> None:
    """Let ``module(hidden, score=function)`` return ``function(hidden)``.

    What is done with the head's weights is done inside its own forward pass, where FSDP2 has gathered them.
    """
    plain_forward = module.forward

    def forward(
        hidden: Tensor, *args: Any, score: Callable[[Tensor], Any] | None = None, **kwargs: Any
    ) -> Any:
        return plain_forward(hidden, *args, **kwargs) if score is None else score(hidden)

    module.forward = forward


@torch.no_grad()
def check_head(model: Any, head: Head | None = None) -> None:
    """Compare our logits with the model's own on a few tokens, before any are trusted.

    Raises:
        ModelError: they differ, because the architecture does something to its logits that
            :class:`Head` does not know.
    """
    head = head or Head.of(model)
    was_training = model.training
    model.eval()
    try:
        count = min(8, head.vocab_size)
        ids = torch.arange(count, device=input_device(model))[None]
        mask = torch.ones_like(ids)
        want = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        hidden = completion_hidden(model, ids, mask, ids[0]).to(head.weight.device)
        got = logits(head, hidden, torch.promote_types(hidden.dtype, head.weight.dtype)).to(want)
    finally:
        model.train(was_training)
    # A padded vocabulary's bias may rule its extra tokens out.
    finite, ruled_out = want.isfinite(), want == -torch.inf
    if not bool((finite | ruled_out).all()) or not bool(finite.any()):
        raise ModelError(
            f"{type(model).__name__} gives logits that are not finite; check its weights, or run it in "
            "float32"
        )
    tolerance = 1e-3 if head.weight.dtype in (torch.float32, torch.float64) else 5e-2
    scale = want[finite].abs().max().clamp(min=1.0)
    if (
        want.shape != got.shape
        or not bool(((got == -torch.inf) == ruled_out).all())
        or not bool((want - got)[finite].abs().max() <= tolerance * scale)
    ):
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way tdpo does not know (its own and ours "
            "differ); it cannot be scored without full logits, so it is not supported yet"
        )


@torch.no_grad()
def check_sharing(
    model: Any,
    lay_out_together: Callable[[Sequence[Pair]], Layout] = lay_out_shared,
    *,
    backward: bool = False,
) -> str | None:
    """Run a few tokens in shared (or packed) and in separate rows.

    Args:
        model: a causal language model.
        lay_out_together: lays out the rows that are to be as good as separate ones.
        backward: try these backward too, through all layers.

    Returns:
        What is wrong, in words, where the results differ; None where they agree.
    """
    pairs = _pairs_to_check(model.config)
    was_training = model.training
    model.eval()
    try:
        separate = _hidden(model, lay_out(pairs)).float()
    finally:
        model.train(was_training)
    model.eval()
    try:
        with torch.set_grad_enabled(backward):
            shared = _hidden(model, lay_out_together(pairs)).float()
            if backward:
                first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
                torch.autograd.grad(shared.sum(), first, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"it does not take such rows ({type(error).__name__})"
    finally:
        model.train(was_training)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 3e-2
    if not bool((shared - separate).norm() <= tolerance * separate.norm()):
        return "rows with a shared prompt score differently"
    return None


def _pairs_to_check(config: Any) -> list[Pair]:
    """Pairs of :data:`_CHECKED` tokens, fewer where the model takes fewer or attends to fewer."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    limits = [limit for limit in (longest_shared_row(text), most) if isinstance(limit, int)]
    scale = min([1.0, *(limit / max(map(sum, _CHECKED)) for limit in limits)])
    pairs, start = [], 0
    for row, lengths in enumerate(_CHECKED):
        parts = [max(1, int(scale * length)) for length in lengths]
        ids = np.arange(start, start := start + sum(parts)) * 7919 % text.vocab_size
        pairs.append(Pair.make(row, *np.split(ids, np.cumsum(parts)[:-1])))
    return pairs


def _hidden(model: Any, layout: Layout) -> torch.Tensor:
    return completion_hidden(model, **layout.model_inputs(input_device(model)))
