"""Parts of a model that the counted step does without: quantised layers, the output head's chunks.

They hold and hand on tensors of the shapes that the real ones do, and compute nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...caching.planning.cost import QUANTISED_BYTES


class QuantisedLinear(nn.Linear):
    """A linear layer as bitsandbytes holds it: frozen, its weight packed, unpacked for a product."""

    def __init__(self, layer: Any, name: str, dtype: torch.dtype):
        rows, columns = layer.weight.shape
        if isinstance(layer, Conv1D):
            rows, columns = columns, rows
        super().__init__(columns, rows, bias=False, device="meta")
        size = round(rows * columns * QUANTISED_BYTES[name])
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias
        self._dtype = dtype
        # In 8 bits the layer's input is kept, though no gradient of the weight is made of it.
        self._keep = name == "8bit"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y: Tensor = _Unpacked.apply(x.to(self._dtype), (self.out_features, self.in_features), self._keep)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], keep: bool) -> Tensor:
        ctx.shape = shape
        if keep:
            ctx.save_for_backward(x)
        return x @ x.new_empty(shape).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None, None


def quantise(model: Any, name: str, dtype: torch.dtype) -> None:
    """Put a :class:`QuantisedLinear` in the place of every linear layer of ``model`` but its output head.

    The model is one on the meta device.
    """
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear | Conv1D) and layer is not head:
                setattr(parent, child, QuantisedLinear(layer, name, dtype))


def head_stand_in(hidden: Tensor, n: int, spend: Callable[[], None], parameters: Iterable[Tensor]) -> Tensor:
    """From hidden states [N, d] to the log-probabilities of ``n`` ids each [N, n], by no product.

    ``spend`` is called when the real head's memory would be highest, forward and backward. The gradients of
    the hidden states and of ``parameters`` are made as they would be.
    """
    scores: Tensor = _Head.apply(hidden, n, spend, *parameters)
    return scores


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, n: int, spend: Callable[[], None], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, *parameters)
        ctx.spend = spend
        spend()
        return hidden.new_empty((len(hidden), n), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        made = [torch.empty_like(p) if want else None for p, want in zip(parameters, wanted, strict=True)]
        ctx.spend()
        return torch.empty_like(hidden), None, None, *made
