"""A cache with its labels exchanged: what a model is trained from towards what is rejected."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..cache.pairs import ScoredPair
from .joining import JoinedPair
from .reading import AroundReader


class SwappedReader(AroundReader):
    """A reader whose chosen sides are those of ``base`` that were rejected, and the other way round.

    Everything that is cached of a side goes with it; ``pair_id`` stays, which names the pair in the cache.
    """

    def __init__(self, base: Any):
        self.base = base

    def read(
        self, indices: Sequence[int] | np.ndarray, *, statistics: Collection[str] | None = None
    ) -> list[ScoredPair]:
        """The pairs at these row numbers, their sides exchanged. See :meth:`CacheReader.read`."""
        return [swapped(one) for one in self.base.read(indices, statistics=statistics)]


def swap_labels(reader: Any) -> Any:
    """``reader`` with its labels exchanged."""
    return SwappedReader(reader)


def swapped(one: ScoredPair) -> ScoredPair:
    """The pair with its sides exchanged."""
    pair = replace(one.pair, chosen_ids=one.pair.rejected_ids, rejected_ids=one.pair.chosen_ids)
    exchanged: dict[str, Any] = {"pair": pair, "chosen": one.rejected, "rejected": one.chosen}
    if isinstance(one, JoinedPair):
        exchanged["added"] = {
            name: replace(each, chosen=each.rejected, rejected=each.chosen)
            for name, each in one.added.items()
        }
    return replace(one, **exchanged)
