"""Which options make a fit smaller, in the order of what they cost in speed and in what is trained."""

from collections.abc import Iterator
from typing import Any

from ...config.fit import FitConfig

_LORA_RANK = 16
_EIGHT_BITS = "adamw_bnb_8bit"


def ladder(config: FitConfig, device: str) -> Iterator[dict[str, Any]]:
    """Sets of options to change, each with those of the ones before it, from the cheapest on.

    Nothing, gradient checkpointing, bfloat16 (at first beside float32 parameters), an optimiser of 8 bits, a
    LoRA, and a LoRA beside a model in 4 bits. What was asked for already is left out.
    """
    found: dict[str, Any] = {}
    yield found
    if not config.gradient_checkpointing:
        found = {**found, "gradient_checkpointing": True}
        yield found
    if config.dtype == "float32":
        if not config.bf16 and device == "cuda":
            yield {**found, "bf16": True}
        found = {**found, "dtype": "bfloat16"}
        if config.bf16:
            # Autocast has nothing left to do.
            found["bf16"] = False
        yield found
    if config.lora is None:
        if device == "cuda" and config.optimizer in ("adamw_torch", "adamw_torch_fused"):
            yield {**found, "optimizer": _EIGHT_BITS}
        found = {**found, "lora": _LORA_RANK}
        yield found
    if config.quantization is None and device == "cuda":
        yield {**found, "quantization": "4bit"}


def smaller_passes(tokens: int, least: int) -> list[int]:
    """Tokens of a forward pass to try: from half of ``tokens`` down to ``least``, the longest pair alone."""
    found = []
    while (tokens := tokens // 2) > least:
        found.append(_round(tokens))
    return [size for size in found if size > least] + [least]


def _round(tokens: int) -> int:
    return tokens - tokens % 64 if tokens >= 256 else tokens
