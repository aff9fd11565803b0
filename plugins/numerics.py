"""Arithmetic that several families share."""

import math

import torch
from torch import Tensor


def log1mexp(x: Tensor) -> Tensor:
    """The logarithm of ``1 - exp(x)`` for x < 0, accurate at both ends."""
    below = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = torch.log(-torch.expm1(below.clamp(min=-math.log(2))))
    return torch.where(below > -math.log(2), near, torch.log1p(-below.clamp(max=-math.log(2)).exp()))
