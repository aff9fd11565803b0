"""The exact divergences of a fit: from which columns of the cache they come, and how they get there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...cache.reader import CacheReader
from ...cache.storage.files import Folder
from ..scoring.exact import FromLogProbs
from ..scoring.head import Head
from ..scoring.head_file import read_head


@dataclass(frozen=True)
class ExactDivergences:
    """What of the divergences is computed from the reference's whole distributions; nothing by default."""

    wanted: frozenset[str] = frozenset()
    """Out of ``forward_kl`` and ``reverse_kl``."""
    head: Head | None = None
    """The reference's output head, where the cache holds hidden states."""
    hidden: torch.dtype | None = None
    """Their precision."""

    @classmethod
    def of(cls, reader: CacheReader, needs: frozenset[str], device: Any = "cpu") -> "ExactDivergences":
        """Those of a fit whose objective reads ``needs``; loads the reference's head onto ``device``.

        Raises:
            CacheError: the head's file cannot be read.
        """
        wanted = needs & {"forward_kl", "reverse_kl"}
        cached = reader.cached
        if not wanted or not cached.whole:
            return cls()
        if cached.hidden is None:
            return cls(wanted)
        head = read_head(Folder.at(reader.location), cached, device)
        return cls(wanted, head, getattr(torch, cached.hidden))

    def arguments(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the scored forward is given of a batch: ``score_ids`` and, where wanted, the reference."""
        if not self.wanted:
            return {"score_ids": batch["score_ids"]}
        flags = {f"score_{name}": True for name in self.wanted}
        if self.head is not None:
            hidden = batch["ref_hidden"].to(self.hidden)
            return {"score_ids": batch["score_ids"], "score_ref_hidden": hidden, **flags}
        # The whole vocabulary in order, rather than gathered in the cache's.
        ids, sample = batch["score_ids"].tensor_split([1], dim=1)
        return {"score_ids": ids, "score_ref_logp": FromLogProbs.of(sample, batch["dist_logp"]).logp, **flags}
