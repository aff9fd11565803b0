"""The output head: how a causal language model turns a hidden state into logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .adapted import LowRank, output_layer


@dataclass(frozen=True)
class Head:
    """``logits = softcap * tanh((hidden @ weight.T + bias + LoRA) * scale / softcap)``; mostly linear.

    ``weight`` [V, d] and ``bias`` [V] are the model's own parameters, tied or not.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    adapters: tuple[LowRank, ...] = ()
    """LoRA beside the weight; all of them count."""

    @property
    def vocab_size(self) -> int:
        """V of the logits: the padded vocabulary."""
        return self.weight.shape[0]

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of a transformers causal language model, wrapped by peft or not.

        Raises:
            ModelError: the model has no output embedding, or a quantised one, or one adapted by other means
                than LoRA or a trained copy.
        """
        module = model.get_output_embeddings()
        if module is None:
            raise ModelError(
                f"{type(model).__name__} has no output embedding; tdpo needs a causal language model "
                "(one that AutoModelForCausalLM opens)"
            )
        layer = output_layer(module)
        config = model.config.get_text_config()
        # Cohere multiplies the logits, Granite divides them, Gemma 2 and RecurrentGemma cap them.
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return cls(layer.weight, layer.bias, scale, softcap, layer.adapters)

    def low_rank(self, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the adapters make of hidden states [N, d], [N, r], and through what it becomes logits, [V, r].

        Both with gradient; r is the sum of the adapters' ranks. None where there is no adapter.
        """
        if not self.adapters:
            return None
        inner = [adapter.inner(hidden) for adapter in self.adapters]
        up = [adapter.b for adapter in self.adapters]
        # Concatenating one would copy it.
        return (inner[0], up[0]) if len(up) == 1 else (torch.cat(inner, -1), torch.cat(up, -1))
