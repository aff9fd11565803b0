"""The weighted likelihood of hybrid preference optimisation, to be added to a preference objective."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.objective import Completions, Objective, PairLoss, hyperparameter


@dataclass(frozen=True)
class HPOWeightedNLL(Objective):
    """Likelihood of both completions, weighted by an advantage that the cache holds.

    After arXiv 2405.17956, whose text was not checked. ``advantage`` is a statistic of each completion, one
    number, that a plugin adds to the cache.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    paper: ClassVar[str] = "arXiv 2405.17956"
    formula: ClassVar[str] = "gamma * mean over sides of -min(exp(A / temperature), max_weight) * logp"
    watch: ClassVar[str] = (
        "``loss/hpo_weighted_nll`` beside the other objectives' own losses: where it outgrows them, a few "
        "completions with large weights lead; lower max_weight or gamma."
    )

    gamma: float = hyperparameter(0.1, "weight of the term", ge=0)
    temperature: float = hyperparameter(1.0, "temperature of the advantages", gt=0)
    max_weight: float = hyperparameter(100.0, "largest weight of a completion", gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The weighted likelihood's loss."""
        loss, rewards = 0.0 * chosen.sum(chosen.logp), []
        for side in (chosen, rejected):
            logp = side.sum(side.logp)
            weight = (side.added("advantage")[:, 0] / self.temperature).exp().clamp(max=self.max_weight)
            loss = loss - 0.5 * self.gamma * weight * logp
            rewards.append(logp.detach())
        return PairLoss(loss, rewards[0], rewards[1])
