"""The micro-batch of a fit that takes most, and what its reader holds, from the cached pairs' lengths."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....cache.lengths import Lengths, pair_lengths
from ....cache.order import epoch_order
from ....cache.pairs import SIDES, ScoredPair
from ....cache.reader import CacheReader
from ...config.fit import FitConfig
from ..batches import Batching, MicroBatch

# Epochs whose orders are looked at, and batches that are put together to find the heaviest micro-batch.
_EPOCHS, _CANDIDATES = 8, 6
# Row groups that a reader keeps decoded, as open_cache has it.
_CACHED_GROUPS = 68


@dataclass(frozen=True)
class Batches:
    """The batches of a fit that matter to its memory.

    Args:
        candidates: batches of pairs among which is the one with the heaviest micro-batch.
        longest: tokens of the longest pair's two sequences.
        pair_bytes: what a decoded pair takes in main memory.
        decoded: how many of them the reader holds.
    """

    candidates: list[list[ScoredPair]]
    longest: int
    pair_bytes: int
    decoded: int

    @classmethod
    def of(cls, config: FitConfig, reader: CacheReader, statistics: Collection[str] | None) -> "Batches":
        """Those of the orders in which ``config``'s epochs read the cache."""
        lengths = pair_lengths(reader)
        rows = _batches(config, reader.group_sizes)
        chosen = dict.fromkeys(index for batches in rows for index in _heavy(batches, lengths))
        if not chosen:
            chosen = dict.fromkeys([tuple(range(min(len(reader), config.batch_size)))])
        candidates = [reader.read(list(batch), statistics=statistics) for batch in chosen]
        sizes = [_pair_bytes(pair) for batch in candidates for pair in batch]
        held = sorted(reader.group_sizes, reverse=True)[:_CACHED_GROUPS]
        # The candidates are heavier than most.
        share = lengths.sequence.mean() / max(1.0, np.mean([_sequence(p) for b in candidates for p in b]))
        return cls(
            candidates,
            2 * int(lengths.sequence.max()),
            round(float(np.mean(sizes)) * min(1.0, float(share))),
            sum(held),
        )

    def heaviest(self, batching: Batching, accumulation: int) -> list[tuple[MicroBatch, bool]]:
        """The micro-batches with most tokens, padding included, and whether gradients are there before them.

        Two where it is not clear which takes more: the first of a step, and one that comes later.
        """
        batches = [batching(batch) for batch in self.candidates]
        firsts = [batch[0] for batch in batches]
        later = [micro for batch in batches for micro in batch[1:]]
        if accumulation > 1:
            firsts, later = [], firsts + later
        return [
            (max(micros, key=_weight), after) for micros, after in ((firsts, False), (later, True)) if micros
        ]


def _batches(config: FitConfig, group_sizes: list[int]) -> list[np.ndarray]:
    """Rows of the batches of each epoch, [batches, batch_size]; a last one that is not full is left out."""
    size = config.batch_size
    total = sum(group_sizes)
    epochs = math.ceil(config.epochs)
    most = None
    if config.max_steps is not None:
        most = config.max_steps * config.gradient_accumulation * config.num_processes
        epochs = math.ceil(most * size / max(1, total))
    found = []
    for epoch in range(min(epochs, _EPOCHS)):
        order = epoch_order(group_sizes, config.seed, epoch)
        whole = order[: total // size * size].reshape(-1, size)
        found.append(whole if most is None else whole[: max(0, most - epoch * -(-total // size))])
    return found


def _heavy(batches: np.ndarray, lengths: Lengths) -> list[tuple[int, ...]]:
    """The batches that are widest, that have most tokens, and that hold the longest pair."""
    if not len(batches):
        return []
    widths = lengths.sequence[batches]
    shared = (lengths.prompt + lengths.chosen + lengths.rejected)[batches]
    orders = (widths.max(1), widths.sum(1), shared.max(1), shared.sum(1))
    chosen = {int(row) for one in orders for row in np.argsort(one)[-_CANDIDATES:]}
    return [tuple(batches[row].tolist()) for row in sorted(chosen)]


def _weight(micro: MicroBatch) -> tuple[int, int]:
    return micro["input_ids"].numel(), micro["score_ids"].numel()


def _sequence(pair: ScoredPair) -> int:
    return len(pair.pair.prompt_ids) + max(len(pair.pair.chosen_ids), len(pair.pair.rejected_ids))


def _pair_bytes(scored: ScoredPair) -> int:
    pair = scored.pair
    arrays: list[Any] = [pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]
    for side in SIDES:
        values = scored.side(side)
        arrays += [getattr(values, name) for name in type(values).__slots__]
    return sum(array.nbytes for array in arrays if array is not None)


def batch_bytes(micro: MicroBatch) -> int:
    """Bytes of a micro-batch's tensors."""
    return sum(value.numel() * value.element_size() for value in micro.values())
