"""Random numbers that depend on what they are for alone: the same on any device and in any batch.

Integer hashing of (seed, place); no generator is kept, and none of torch's is touched.
"""

import zlib

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators"), as signed integers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
# What a float32 holds exactly.
_BITS = 24


def mixed(x: Tensor) -> Tensor:
    """The int64 numbers ``x``, each as one that looks random; different ones stay different."""
    x = (x ^ _shifted(x, 30)) * _FACTORS[0]
    x = (x ^ _shifted(x, 27)) * _FACTORS[1]
    return x ^ _shifted(x, 31)


def draw_seeds(pair_ids: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """What the draws of a pair's two sides start from, in one epoch of one run.

    Args:
        pair_ids: [B, 16] uint8, as they travel with a batch.
        seed: of the run.
        epoch: from 0.

    Returns:
        ``Completions.draw_seed`` of the chosen and of the rejected sides, [B] int64.
    """
    places = 8 * torch.arange(8, device=pair_ids.device)
    low, high = (pair_ids.long().reshape(-1, 2, 8) << places).sum(-1).unbind(1)
    run = mixed(mixed(torch.tensor(seed, device=pair_ids.device) + _STEP) + epoch * 2 + 1)
    base = mixed(mixed(low ^ run) ^ high)
    return mixed(base + _STEP), mixed(base - _STEP)


def uniform(seeds: Tensor, width: int, salt: str, dtype: torch.dtype) -> Tensor:
    """Numbers [B, T] in [0, 1), one a place; of 24 bits, so that they are the same in any dtype.

    Args:
        seeds: [B] int64.
        width: T.
        salt: what they are for: draws of other names are others.
        dtype: float32 or wider.
    """
    places = torch.arange(1, width + 1, device=seeds.device) * _STEP
    keys = mixed(mixed(seeds ^ zlib.crc32(salt.encode()))[:, None] + places)
    return _shifted(keys, 64 - _BITS).to(dtype) / (1 << _BITS)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
