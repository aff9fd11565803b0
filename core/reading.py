"""What stands around a cache's reader and answers as it does."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..cache.pairs import ScoredPair


class AroundReader(ABC):
    """A reader that reads in its own way, and is ``base`` in everything else."""

    base: Any

    @abstractmethod
    def read(
        self, indices: Sequence[int] | np.ndarray, *, statistics: Collection[str] | None = None
    ) -> list[ScoredPair]:
        """The pairs at these row numbers. See :meth:`~tdpo.cache.reader.CacheReader.read`."""

    def __getitem__(self, index: int) -> ScoredPair:
        return self.read([index])[0]

    def __len__(self) -> int:
        return len(self.base)

    def __getattr__(self, name: str) -> Any:
        # Not while it is being unpickled, when there is no base yet.
        if name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)
