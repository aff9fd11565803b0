"""What scoring with a model takes, told from its configuration: memory, arithmetic; and a machine's speed.

No weights are opened: the model is made on PyTorch's meta device, where parameters have no content.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ...models import ModelSource, weightless
from ...scoring.chunking import chunk_rows
from ...scoring.head import Head

# Numbers of a token that a layer holds at its peak: residual stream, inputs of attention and feed-forward.
_NUMBERS_A_TOKEN = 20
# Logits of a chunk, and the probabilities made of them.
_CHUNKS = 2
_MEASURED_SECONDS = 0.5
# Bytes of a quantised linear layer's weight, with its scales: in 4 bits one of 64 weights, itself in 8 bits.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


@dataclass(frozen=True)
class ModelCost:
    """A model's size and the arithmetic of a forward pass over it."""

    weights: int
    """Bytes of its parameters."""
    body_flops: float
    """Of one token through the layers, without attention to others."""
    attention_flops: float
    """Of one token for each token that it attends to."""
    head_flops: float
    """Of one token's logits."""
    hidden_size: int
    vocab_size: int
    item: int
    """Bytes of a number in the model's precision."""

    @classmethod
    def of(cls, source: ModelSource, dtype: str, quantization: str | None = None) -> "ModelCost":
        """The cost of ``source`` in ``dtype`` (a name of torch's).

        Raises:
            ModelError: transformers cannot make a model of its configuration.
        """
        item = getattr(torch, dtype).itemsize
        model = weightless(source, dtype)
        text = source.config.get_text_config()
        embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        parameters = {id(p): (name, p) for name, p in model.named_parameters()}
        body = {key: found for key, found in parameters.items() if key not in embeddings}
        bytes_of = [
            p.numel()
            * (QUANTISED_BYTES[quantization] if quantization and p.dim() == 2 and key in body else item)
            for key, (_, p) in parameters.items()
        ]
        active = sum(p.numel() * _active(name, text) for name, p in body.values())
        width = model.get_output_embeddings().weight.shape
        layers = getattr(text, "num_hidden_layers", 1)
        return cls(
            weights=round(sum(bytes_of)),
            body_flops=2.0 * active,
            # A product with the keys and one with the values.
            attention_flops=4.0 * layers * text.hidden_size,
            head_flops=2.0 * width[0] * width[1],
            hidden_size=text.hidden_size,
            vocab_size=width[0],
            item=item,
        )

    def flops(self, tokens: int, mean_length: float, completion_tokens: int) -> float:
        """Of ``tokens`` through the body, in sequences of ``mean_length``, and of the completions' logits."""
        attended = self.attention_flops * mean_length / 2
        return tokens * (self.body_flops + attended) + completion_tokens * self.head_flops

    def memory(
        self, batch_tokens: int, longest: int, device: torch.device, *, shared: bool
    ) -> dict[str, int]:
        """Bytes by purpose while a batch is scored."""
        head = Head(torch.empty(self.vocab_size, 0, device=device))
        rows = min(chunk_rows(head), batch_tokens)
        tokens = max(batch_tokens, longest * (1 if shared else 2))
        return {
            "weights": self.weights,
            "activations": tokens * _NUMBERS_A_TOKEN * self.hidden_size * self.item,
            "attention mask": tokens * longest * (self.item if shared else 1),
            "logits": _CHUNKS * rows * self.vocab_size * 4,
        }


def _active(name: str, text: Any) -> float:
    """The share of a parameter that a token goes through: below 1 for a mixture's experts."""
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen and ".experts" in name else 1.0


def matmul_rate(device: torch.device, dtype: str, width: int) -> float:
    """Floating-point operations a second of a product [1024, width] x [width, width], from half a second."""
    kind = getattr(torch, dtype)
    width = max(256, min(width, 8192))
    with torch.inference_mode():
        a, b = (torch.zeros(rows, width, dtype=kind, device=device) for rows in (1024, width))
        _ = a @ b
        _wait(device)
        start, done = time.monotonic(), 0
        while (spent := time.monotonic() - start) < _MEASURED_SECONDS or not done:
            _ = a @ b
            _wait(device)
            done += 1
    return done * 2.0 * 1024 * width * width / max(spent, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
