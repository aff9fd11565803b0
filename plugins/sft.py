"""Plain likelihood of one side of the pairs: what trains a contrastive model, or is added to a preference."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.objective import Completions, Objective, PairLoss, hyperparameter


@dataclass(frozen=True)
class SFT(Objective):
    """Raise the likelihood of one side's completions.

    Supervised fine-tuning on what the cache holds: the tokens of the completions, not of the prompts.
    """

    formula: ClassVar[str] = "-mean_t logp(side)"
    watch: ClassVar[str] = (
        "``logps/chosen`` (or ``logps/rejected``, where that side is trained) rises. A held-out ``loss`` "
        "that turns up, or ``entropy`` that falls steeply, tells of learning by heart: stop there."
    )

    side: str = hyperparameter("chosen", "side that is made likelier", choices=("chosen", "rejected"))
    length_normalise: bool = hyperparameter(True, "mean over a completion's tokens; false: their sum")

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """Minus the log-likelihood; the rewards are both sides' log-ratios."""
        one = chosen if self.side == "chosen" else rejected
        loss = -(one.mean(one.logp) if self.length_normalise else one.sum(one.logp))
        a, b = (side.sum(side.log_ratio).detach() for side in (chosen, rejected))
        return PairLoss(loss, a, b)
