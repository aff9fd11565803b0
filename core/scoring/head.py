"""The output head: how a causal language model turns a hidden state into logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

# Rows of the output embedding upcast at a time where the hardware cannot multiply in half precision
# into float32 (a whole float32 copy of the embedding would cost gigabytes).
_UPCAST_ROWS = 8192


@dataclass(frozen=True)
class Head:
    """``logits = softcap * tanh((hidden @ weight.T + bias) * scale / softcap)``; a plain linear layer mostly.

    ``weight`` [V, d] and ``bias`` [V] are the model's own parameters, tied or not.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        """V of the logits: the padded vocabulary."""
        return self.weight.shape[0]

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of a transformers causal language model.

        Raises:
            ModelError: the model has no output embedding.
        """
        module = model.get_output_embeddings()
        if module is None or getattr(module, "weight", None) is None:
            raise ModelError(
                f"{type(model).__name__} has no output embedding; tdpo needs a causal language model "
                "(one that AutoModelForCausalLM opens)"
            )
        config = model.config.get_text_config()
        # Cohere multiplies the logits, Granite divides them, Gemma 2 and RecurrentGemma cap them.
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(
            module.weight,
            getattr(module, "bias", None),
            scale,
            getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None),
        )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything else is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the head's matrix products take: autocast's dtype where it is on, else the wider of the two."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` with operands in ``dtype`` and the result accumulated and returned in float32 or wider."""
    out = accumulation_dtype(dtype)
    if dtype == out:
        return a.to(dtype) @ b.to(dtype)
    if a.is_cuda:
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=out)
    return a.to(dtype).to(out) @ b.to(dtype).to(out)


def vocabulary_slices(head: Head, dtype: torch.dtype) -> Iterator[slice]:
    """The rows of the output embedding to multiply at a time: all, unless they must be upcast."""
    rows = head.vocab_size
    step = _UPCAST_ROWS if dtype != accumulation_dtype(dtype) and not head.weight.is_cuda else rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def logits(head: Head, hidden: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Logits [C, V] of one chunk of hidden states [C, d], in float32 (float64 for float64 inputs)."""
    slices = list(vocabulary_slices(head, dtype))
    if len(slices) == 1:
        result = matmul(hidden, head.weight.T, dtype)
    else:
        shape = (hidden.shape[0], head.vocab_size)
        result = hidden.new_empty(shape, dtype=accumulation_dtype(dtype)) if out is None else out
        for rows in slices:
            result[:, rows] = matmul(hidden, head.weight[rows].T, dtype)
    if head.bias is not None:
        result += head.bias
    if head.scale != 1.0:
        result *= head.scale
    if head.softcap is not None:
        result.div_(head.softcap).tanh_().mul_(head.softcap)
    return result
