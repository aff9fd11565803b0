"""Whether a model can score a pair as one row ``prompt | chosen | rejected``, its prompt only once.

With positions that restart after the prompt and a mask in which rejected tokens do not see chosen ones,
causal attention makes that row exactly the two separate sequences. A model that mixes tokens in another way
than attention under the mask it is given cannot do it: its configuration tells, and a check on a few tokens
is the last word.
"""

import inspect
from typing import Any

from ..errors import ModelError

# The layer types that attend to what the mask shows them, within a window at most.
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_BACKENDS = {None, "auto", "sdpa", "eager", "flex_attention"}
_WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "local_attention",
    "keep_window_size",
)
# Attention that chooses what it sees by blocks of the row.
_SPARSE = ("index_topk", "index_block_size")


def cannot_share(config: Any, attention: str | None = None) -> str | None:
    """Why a model of this transformers configuration cannot share prompts, in words; None where it can.

    Args:
        config: the model's.
        attention: the backend it is to run with; None or ``"auto"`` for transformers' choice.
    """
    if attention not in _BACKENDS:
        return f"attention backend {attention} takes no mask of its own for each row"
    if attention == "flex_attention" and not _on_cuda():
        return f"attention backend {attention} is trained with on CUDA only"
    text = config.get_text_config()
    if text is not config:
        return "its attention depends on more than text"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others:
        return f"it has layers of type {', '.join(others)}"
    if any(getattr(text, name, None) for name in _SPARSE):
        return "its attention is sparse"
    return _model_cannot(_model_class(config), config)


def _on_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _model_cannot(model: Any, config: Any) -> str | None:
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers"
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        return "its positions cannot be set"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention is not causal"
    return None


def _model_class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, list | tuple) else found


def longest_shared_row(config: Any) -> int | None:
    """Most tokens of a row whose prompt can be shared: the shortest attention window; None without one."""
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def cannot_pack(model: Any) -> str | None:
    """Why a model that can share prompts cannot take several pairs in a row, in words; None where it can."""
    if not getattr(model, "_supports_flex_attn", False):
        return "transformers does not run it with masks of any kind"
    return None


def choose_layout(config: Any, prompt_sharing: str, attention: str | None = None) -> str:
    """``"shared"`` or ``"separate"``, from the option ``--prompt-sharing`` and the model's configuration.

    Raises:
        ModelError: ``on`` where the model cannot.
    """
    if prompt_sharing == "off":
        return "separate"
    reason = cannot_share(config, attention)
    if reason is not None and prompt_sharing == "on":
        raise impossible(config, reason)
    return "separate" if reason is not None else "shared"


def impossible(config: Any, reason: str) -> ModelError:
    """The error of ``--prompt-sharing on`` with a model that cannot, for ``reason``."""
    return ModelError(
        f"--prompt-sharing on: a {config.model_type} model cannot share prompts: {reason}; "
        "leave it at auto, or turn it off"
    )
