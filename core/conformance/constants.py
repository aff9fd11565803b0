"""Finite differences that leave constants alone: what an objective detaches does not move with its input."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Constants(TorchFunctionMode):
    """Remembers what is detached, or computed without gradient, in one run, and gives it again in others.

    To autograd that is a constant; to finite differences of the whole formula it would not be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.at: int | None = None

    def replay(self) -> "Constants":
        """Give what was kept, from the first on."""
        self.at = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep or give a result that has no gradient by intention."""
        result = func(*args, **(kwargs or {}))
        if func not in (torch.Tensor.detach, torch.detach) and torch.is_grad_enabled():
            return result
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if self.at is None:
            self.kept.append(result.clone())
            return result
        self.at += 1
        return self.kept[self.at - 1] if self.at <= len(self.kept) else result


def differences(
    loss: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor], step: float = 1e-5
) -> list[Tensor]:
    """Gradient of ``loss`` (a scalar) by central differences in float64, constants held.

    Args:
        loss: of tensors like ``leaves``.
        leaves: where; each its gradient has the shape of.
        step: half the distance of the two values.
    """
    constants = Constants()
    with constants:
        loss(leaves)
    found = []
    for at, leaf in enumerate(leaves):
        slope = torch.zeros_like(leaf)
        for place in range(leaf.numel()):
            values = []
            for sign in (1, -1):
                moved = leaf.detach().clone()
                moved.view(-1)[place] += sign * step
                others = [*leaves[:at], moved.requires_grad_(), *leaves[at + 1 :]]
                with constants.replay():
                    values.append(float(loss(others).detach()))
            slope.view(-1)[place] = (values[0] - values[1]) / (2 * step)
        found.append(slope)
    return found
