"""What this machine can compute in, asked before anything is loaded; and what low precision would lose."""

from typing import Any

from ..config.fit import FitConfig
from ..errors import ConfigError
from ..models import check_quantization

# The first CUDA capability with units for bfloat16; older ones emulate it, slowly.
_BFLOAT16_CAPABILITY = (8, 0)

# Values of each parameter that are looked at, and the lost share from which on it is worth a word.
_LOOKED_AT, _WORTH_A_WORD = 1 << 16, 0.1


def check_precision(config: FitConfig) -> None:
    """Refuse bfloat16 and quantised weights where the device has none.

    Raises:
        ConfigError: the GPU does not compute in bfloat16.
        ModelError: bitsandbytes is not installed, or does not run here.
    """
    import torch

    asked = "--bf16" if config.bf16 else "--dtype bfloat16" if config.dtype == "bfloat16" else None
    if asked is not None and torch.cuda.is_available() and torch.version.hip is None:
        check_bfloat16(asked, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    if config.quantization is not None:
        check_quantization(config.quantization, "--quantization")


def check_bfloat16(option: str, device: str, capability: tuple[int, int]) -> None:
    """Refuse ``option`` on an NVIDIA GPU whose ``capability`` is too low for bfloat16.

    Raises:
        ConfigError: names the GPU.
    """
    if capability < _BFLOAT16_CAPABILITY:
        raise ConfigError(
            f"{option}: {device} (compute capability {capability[0]}.{capability[1]}) does not compute in "
            "bfloat16, which takes 8.0 or newer; leave it out, or pass --set training.fp16=true"
        )


def lost_share(model: Any, step: float) -> float:
    """The share of the bfloat16 values to be trained that are rounded back when ``step`` is added to them.

    Adaptive optimisers move a value by about the learning rate at most, whatever its gradient; bfloat16 keeps
    eight bits of a value, so that it stays what it was where the rate is less than 1/512 of it.
    """
    import torch

    lost = total = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and parameter.numel():
            values = parameter.detach().flatten()[:_LOOKED_AT]
            unmoved = int((values + step == values).sum())
            lost += unmoved * parameter.numel() / values.numel()
            total += parameter.numel()
    return lost / total if total else 0.0


def rounding_notice(model: Any, arguments: Any) -> str | None:
    """What to say where most steps of the optimiser would be lost to rounding; None where few are.

    Args:
        model: the policy.
        arguments: transformers.TrainingArguments of the fit.
    """
    said = f"{getattr(arguments.optim, 'value', arguments.optim)} {arguments.optim_args or ''}"
    if any(word in said for word in ("stochastic_round", "kahan", "stable_adamw")):
        return None
    share = lost_share(model, arguments.learning_rate)
    if share < _WORTH_A_WORD:
        return None
    return (
        f"--dtype bfloat16: {share:.0%} of the parameters are too large for a step of "
        f"{arguments.learning_rate:g} to change them, and stay as they are. Keep them in float32 and compute "
        "in bfloat16 (--bf16 alone), train a LoRA, or take an optimiser that rounds at random "
        "(docs/training.md)"
    )
