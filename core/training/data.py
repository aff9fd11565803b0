"""Cached pairs as a torch data set: read by row group, shuffled by (seed, epoch), collated into tensors."""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ...cache.order import epoch_order
from ...cache.pairs import Pair, ScoredPair, SideStatistics
from ...cache.reader import CacheReader
from ..scoring.added import added_columns
from ..scoring.layout import Layout, lay_out

NO_ROW = -1


class CachedPairs(Dataset[ScoredPair]):
    """The rows of a cache, for a DataLoader; with all its statistics, or those named."""

    def __init__(self, reader: CacheReader, statistics: Collection[str] | None = None):
        self.reader, self.statistics = reader, statistics

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> ScoredPair:
        return self.reader.read([index], statistics=self.statistics)[0]

    def __getitems__(self, indices: list[int]) -> list[ScoredPair]:
        """A whole batch at once, each row group decoded once (DataLoader asks for this).

        What :class:`EpochSampler` fills a process's batch up with is left out.
        """
        return self.reader.read([i for i in indices if i != NO_ROW], statistics=self.statistics)


class EpochSampler(Sampler[int]):
    """All rows once an epoch, in an order of (seed, epoch) alone that reads few row groups at a time.

    Args:
        reader: of the cache.
        seed: of the order.
        multiple: what the number of indices is filled up to a multiple of, with :data:`NO_ROW`. With the rows
            of a batch over all processes, each of them has as many batches and no row comes twice.
    """

    def __init__(self, reader: CacheReader, seed: int, multiple: int = 1):
        self.reader, self.seed, self.multiple, self.epoch = reader, seed, multiple, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.reader) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from epoch_order(self.reader.group_sizes, self.seed, self.epoch).tolist()
        yield from [NO_ROW] * (len(self) - len(self.reader))


def collate(
    records: Sequence[ScoredPair], layout: Callable[[Sequence[Pair]], Layout] = lay_out
) -> dict[str, Tensor]:
    """``B`` cached pairs as the tensors of a forward pass; flat ones have a row a completion token, chosen
    sides first.

    Args:
        records: the pairs.
        layout: puts their tokens into rows.

    Returns:
        what the layout gives, input_ids and attention_mask [R, L] among it; score_positions [N]; score_ids
        [N, 1 + n] (the completion token, then the cached sample); lengths [2B]; tokens [B], of a pair's two
        sequences; pair_ids [B, 16] uint8, see :func:`encode_pair_ids`; ref_logp [N] float32; and, where
        cached, dist_logp [N, n], ref_hidden [N, d] and ref_entropy [N] float32, and what
        :func:`added_columns` gives.
    """
    pairs = [record.pair for record in records]
    laid_out = layout(pairs)
    sides = [record.chosen for record in records] + [record.rejected for record in records]
    batch = {
        **laid_out.model_inputs(torch.device("cpu")),
        "score_ids": laid_out.labels[:, None],
        "lengths": laid_out.lengths,
        "tokens": torch.tensor([2 * len(pair.prompt_ids) + pair.completion_tokens for pair in pairs]),
        "pair_ids": encode_pair_ids([pair.pair_id for pair in pairs]),
        "ref_logp": _flat(sides, "ref_logp"),
    }
    batch["score_positions"] = batch.pop("positions")
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


def encode_pair_ids(pair_ids: Sequence[str]) -> Tensor:
    """Pair ids, of 32 hexadecimal digits each, as a tensor that travels with a batch: uint8 [B, 16]."""
    return torch.tensor([list(bytes.fromhex(one)) for one in pair_ids], dtype=torch.uint8).reshape(-1, 16)


def decode_pair_ids(encoded: Tensor) -> list[str]:
    """The reverse of :func:`encode_pair_ids`."""
    return [bytes(row).hex() for row in encoded.tolist()]


def _flat(sides: Sequence[SideStatistics], column: str) -> Tensor:
    return torch.from_numpy(np.concatenate([getattr(side, column) for side in sides]).astype(np.float32))
