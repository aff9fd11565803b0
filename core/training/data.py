"""Cached pairs as a torch data set: read by row group, shuffled by (seed, epoch), collated into tensors."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ...cache.order import epoch_order
from ...cache.pairs import ScoredPair, SideStatistics
from ...cache.reader import CacheReader
from ..scoring.added import added_columns
from ..scoring.layout import lay_out


class CachedPairs(Dataset[ScoredPair]):
    """The rows of a cache, for a DataLoader; with all its statistics, or those named."""

    def __init__(self, reader: CacheReader, statistics: Collection[str] | None = None):
        self.reader, self.statistics = reader, statistics

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> ScoredPair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ScoredPair]:
        """A whole batch at once, each row group decoded once (DataLoader asks for this)."""
        return self.reader.read(indices, statistics=self.statistics)


class EpochSampler(Sampler[int]):
    """All rows once an epoch, in an order of (seed, epoch) alone that reads few row groups at a time."""

    def __init__(self, reader: CacheReader, seed: int):
        self.reader, self.seed, self.epoch = reader, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.reader.group_sizes, self.seed, self.epoch).tolist())


def collate(records: Sequence[ScoredPair]) -> dict[str, Tensor]:
    """A batch of ``B`` cached pairs as tensors; flat ones have a row a completion token, chosen sides first.

    Returns:
        input_ids, attention_mask [2B, L]; score_positions [N]; score_ids [N, 1 + n] (the completion token,
        then the cached sample); lengths [2B]; ref_logp [N] float32; and, where cached, dist_logp [N, n],
        ref_hidden [N, d] and ref_entropy [N] float32, and what :func:`added_columns` gives.
    """
    layout = lay_out([record.pair for record in records])
    sides = [record.chosen for record in records] + [record.rejected for record in records]
    batch = {
        "input_ids": layout.input_ids,
        "attention_mask": layout.attention_mask,
        "score_positions": layout.positions,
        "score_ids": layout.labels[:, None],
        "lengths": layout.lengths,
        "ref_logp": _flat(sides, "ref_logp"),
    }
    if sides[0].dist_ids is not None:
        ids = np.concatenate([side.dist_ids for side in sides if side.dist_ids is not None])
        sample = torch.from_numpy(ids.astype(np.int64))
        batch["score_ids"] = torch.cat([batch["score_ids"], sample], dim=1)
        batch["dist_logp"] = _flat(sides, "dist_logp")
    if sides[0].ref_hidden is not None:
        batch["ref_hidden"] = _flat(sides, "ref_hidden")
    if sides[0].ref_entropy is not None:
        batch["ref_entropy"] = _flat(sides, "ref_entropy")
    return batch | added_columns(records)


def _flat(sides: Sequence[SideStatistics], column: str) -> Tensor:
    return torch.from_numpy(np.concatenate([getattr(side, column) for side in sides]).astype(np.float32))
