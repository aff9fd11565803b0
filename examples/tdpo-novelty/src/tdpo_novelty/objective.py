"""DPO that expects the more novel completion to be preferred anyway."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tdpo import Completions, MarginObjective, hyperparameter


@dataclass(frozen=True)
class NoveltyDPO(MarginObjective):
    """DPO with a margin for the difference in novelty, which the policy then need not learn."""

    needs: ClassVar[frozenset[str]] = frozenset({"novelty"})
    formula: ClassVar[str] = "-log sigmoid(beta*D + gamma*(novelty_chosen - novelty_rejected))"

    gamma: float = hyperparameter(0.5, "margin of wholly novel over wholly copied")

    def margin(self, chosen: Completions, rejected: Completions) -> Tensor:
        """``beta*D + gamma*(novelty_chosen - novelty_rejected)`` [B]."""
        difference = chosen.added("novelty")[:, 0] - rejected.added("novelty")[:, 0]
        return super().margin(chosen, rejected) + self.gamma * difference
