"""How much of a completion is not in its prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tdpo import Column, Statistic


@dataclass(frozen=True)
class Novelty(Statistic):
    """Share of a completion's tokens that do not occur in the prompt."""

    columns: ClassVar[Mapping[str, Column]] = {
        "novelty": Column("completion", doc="[1] share of tokens that the prompt does not contain")
    }
    needs_model: ClassVar[bool] = False

    def compute(self, model: Any, tokenizer: Any, pairs: Sequence[Any]) -> Mapping[str, Sequence[Any]]:
        """One number a completion, of both sides."""
        return {
            f"{side}_novelty": [share(pair.prompt_ids, getattr(pair, f"{side}_ids")) for pair in pairs]
            for side in ("chosen", "rejected")
        }


def share(prompt: np.ndarray, completion: np.ndarray) -> np.ndarray:
    """[1] float32 in [0, 1]."""
    return np.array([1 - np.isin(completion, prompt).mean()], np.float32)
