"""The order of an epoch: shuffled, reproducible, and kind to a reader that loads row groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def epoch_order(
    group_sizes: Sequence[int], seed: int, epoch: int, pool_groups: int = 64
) -> NDArray[np.int64]:
    """Return a permutation of all rows that visits each row once: int64 [sum(group_sizes)].

    The row groups are shuffled, taken `pool_groups` at a time, and the rows of each such pool are shuffled
    together. Reading in this order needs at most a pool of row groups in memory. The order depends on
    nothing but the arguments: it is the same on every platform and with every version of NumPy, because
    it sorts raw random bits, which NumPy promises never to change.

    Args:
        group_sizes: rows in each row group, in the order in which rows are numbered.
        seed: which sequence of epochs.
        epoch: which epoch of the sequence.
        pool_groups: row groups shuffled together; 1 shuffles only within row groups.

    Raises:
        ValueError: `pool_groups` is below 1, or a size is negative.

    """
    sizes = np.asarray(group_sizes, dtype=np.int64)
    if pool_groups < 1:
        raise ValueError(f"pool_groups must be at least 1, not {pool_groups}")
    if sizes.size and int(sizes.min()) < 0:
        raise ValueError("group sizes cannot be negative")
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch % 2**64]))
    starts = np.cumsum(sizes) - sizes
    groups = _shuffled(np.arange(len(sizes)), bits)
    pools = []
    for first in range(0, len(groups), pool_groups):
        members = groups[first : first + pool_groups]
        rows = np.concatenate([np.arange(starts[g], starts[g] + sizes[g]) for g in members])
        pools.append(_shuffled(rows, bits))
    return np.concatenate(pools) if pools else np.empty(0, dtype=np.int64)


def _shuffled(values: NDArray[np.int64], bits: np.random.PCG64) -> NDArray[np.int64]:
    keys = np.asarray(bits.random_raw(len(values)), dtype=np.uint64)
    return values[np.argsort(keys, kind="stable")]
