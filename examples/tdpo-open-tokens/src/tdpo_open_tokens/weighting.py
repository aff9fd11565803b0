"""Weights of tokens from the reference's entropy."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tdpo import Completions, Weighting, hyperparameter


@dataclass(frozen=True)
class OpenTokens(Weighting):
    """Weigh a token by the reference's entropy, over the mean of its completion."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref_entropy"})
    formula: ClassVar[str] = "w_t = floor + (1 - floor) * H_t / mean_t H_t"

    floor: float = hyperparameter(0.1, "weight of a token that was certain", ge=0, le=1)

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """Weights [B, T] that average 1 over a completion."""
        return self._of(chosen), self._of(rejected)

    def _of(self, side: Completions) -> Tensor:
        mean = side.mean(side.ref_entropy).clamp(min=1e-6)
        share = torch.where(side.mask, side.ref_entropy, 0.0) / mean[:, None]
        return self.floor + (1 - self.floor) * share
