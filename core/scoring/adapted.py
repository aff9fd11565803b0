"""The layer that makes logits, and what peft may have made of it: a LoRA beside it, or a trained copy."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to the logits: ``scale * dropout(hidden) @ a.T @ b.T``."""

    a: Tensor
    """[r, d]."""
    b: Tensor
    """[V, r]."""
    scale: float = 1.0
    dropout: Callable[[Tensor], Tensor] | None = None
    """The layer's own: does nothing outside training, or where its probability is 0."""

    def inner(self, hidden: Tensor) -> Tensor:
        """``scale * dropout(hidden) @ a.T`` [N, r], float32 or wider, with gradient."""
        x = hidden.to(self.a.dtype)
        if self.dropout is not None:
            x = self.dropout(x)
        u = torch.nn.functional.linear(x, self.a)
        return (u if u.dtype == torch.float64 else u.float()) * self.scale


@dataclass(frozen=True)
class OutputLayer:
    """The tensors that make logits of hidden states, with gradient where they are trained."""

    weight: Tensor
    """[V, d]."""
    bias: Tensor | None
    """[V]."""
    adapters: tuple[LowRank, ...] = ()
    """Those that are active; their sum counts."""


def output_layer(module: Any) -> OutputLayer:
    """The tensors of an output embedding: a linear layer, or what peft put in its place.

    Raises:
        ModelError: it is quantised, or adapted by other means than LoRA or a trained copy.
    """
    # Whoever wrapped the model has imported it.
    layer, active = _unwrapped(module) if "peft" in sys.modules else (module, [])
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.itemsize < 2:
        kind = type(layer).__name__ + (f" of {weight.dtype}" if isinstance(weight, Tensor) else "")
        raise ModelError(
            f"the output embedding is quantised ({kind}); its gradients need it in 16 or 32 bits: quantise "
            "the model without it (llm_int8_skip_modules of its quantization_config)"
        )
    adapters = []
    for name in active:
        b = module.lora_B[name]
        scale = float(module.scaling[name])
        adapters.append(LowRank(module.lora_A[name].weight, b.weight, scale, module.lora_dropout[name]))
        if b.bias is not None:
            added = b.bias.to(torch.promote_types(b.bias.dtype, torch.float32)) * scale
            bias = added if bias is None else bias + added
    return OutputLayer(weight, bias, tuple(adapters))


def _unwrapped(module: Any) -> tuple[Any, list[str]]:
    """The layer inside peft's, and the names of the LoRA adapters that act beside it."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        names = [name for name in module.active_adapters if name in module.modules_to_save]
        copied = names and not module.disable_adapters
        return (module.modules_to_save[names[0]] if copied else module.original_module), []
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return module, []
    if isinstance(module, BaseTunerLayer) and module.merged != module.disable_adapters:
        # The weight holds the adapters already, or they are switched off.
        return module.get_base_layer(), []
    if not isinstance(module, LoraLayer) or len(module.lora_embedding_A):
        raise _refused(module, "tdpo knows a LoRA there, or a copy that is trained whole (modules_to_save)")
    if module.merged:
        raise _refused(module, "it is merged and switched off at once: unmerge it")
    active = [name for name in module.active_adapters if name in module.lora_A]
    for name in active:
        if name in module.lora_variant:
            what = type(module.lora_variant[name]).__name__
            raise _refused(
                module, f"{what} does more than a LoRA: use a plain one there, or leave the head out"
            )
    return module.get_base_layer(), active


def _refused(module: Any, why: str) -> ModelError:
    return ModelError(
        f"the adapter on the output embedding ({type(module).__name__}) cannot be scored: {why}"
    )
