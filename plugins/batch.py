"""Objectives over a whole batch: distributions of rewards compared, pairs contrasted across prompts.

Their value depends on the batch, so that a fit takes an optimiser step's pairs as one micro-batch.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Completions, Objective, PairLoss, hyperparameter, logistic_loss

_BETA = "strength of the pull towards the reference"


@dataclass(frozen=True)
class _Batch(Objective):
    batch_level: ClassVar[bool] = True

    beta: float = hyperparameter(0.1, _BETA, gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The loss of every rank or pair, and DPO's rewards."""
        a, b = (self.beta * side.sum(side.log_ratio).detach() for side in (chosen, rejected))
        return PairLoss(self.losses(chosen, rejected), a, b)

    @abstractmethod
    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] of a batch."""


@dataclass(frozen=True)
class AOT(_Batch):
    """The policy's margins, sorted, above the reference's, sorted: first-order dominance.

    Melnyk et al., arXiv 2406.05882, paired. ``loss[i]`` belongs to a rank, not to a pair.
    """

    paper: ClassVar[str] = "arXiv 2406.05882"
    formula: ClassVar[str] = "mean_i -log sigmoid(beta*(sort(logp margin)_i - sort(ref_logp margin)_i))"
    watch: ClassVar[str] = (
        "``loss`` compares distributions of a batch, noisy where that is small: judge by "
        "``rewards/margins``. ``rewards/accuracies``, pair by pair, need not follow."
    )

    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] by rank."""
        policy = chosen.sum(chosen.logp) - rejected.sum(rejected.logp)
        reference = chosen.sum(chosen.ref_logp) - rejected.sum(rejected.ref_logp)
        return logistic_loss(
            self.beta * (policy.sort().values - reference.sort().values), self.label_smoothing
        )


@dataclass(frozen=True)
class AOTUnpaired(_Batch):
    """The chosen completions' log-ratios, sorted, above the rejected ones', sorted.

    Melnyk et al., arXiv 2406.05882, unpaired. ``loss[i]`` belongs to a rank, not to a pair.
    """

    paper: ClassVar[str] = "arXiv 2406.05882"
    formula: ClassVar[str] = "mean_i -log sigmoid(beta*(sort(R_chosen)_i - sort(R_rejected)_i))"
    watch: ClassVar[str] = (
        "``rewards/chosen`` as a whole moves above ``rewards/rejected``. ``rewards/accuracies``, pair by "
        "pair, need not follow; ``loss`` is noisy where that is small."
    )

    label_smoothing: float = hyperparameter(0.0, "probability e that a label is flipped", ge=0, lt=0.5)

    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] by rank."""
        a, b = (side.sum(side.log_ratio).sort().values for side in (chosen, rejected))
        return logistic_loss(self.beta * (a - b), self.label_smoothing)


@dataclass(frozen=True)
class RPORelative(_Batch):
    """Every chosen completion against every rejected one, more so where the prompts are alike.

    Relative preference optimisation, Yin et al., arXiv 2402.10958. ``prompt_embedding`` is a statistic of the
    cache. The weights of a row sum to 1, so that beta shrinks as the batch grows.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prompt_embedding"})
    paper: ClassVar[str] = "arXiv 2402.10958"
    formula: ClassVar[str] = (
        "mean_j -log sigmoid(beta*w_ij*(R_chosen_i - R_rejected_j)),  "
        "w_i = softmax_j(-(1 - cos(e_i, e_j)) / tau)"
    )
    watch: ClassVar[str] = (
        "``loss`` stays near log 2 for long where the batch is large, since the weights shrink beta by it: "
        "raise beta with the batch size until ``rewards/margins`` grows as DPO's would."
    )

    temperature: float = hyperparameter(0.5, "tau: how alike prompts must be", gt=0)

    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] by pair."""
        contrast = _contrast(chosen, rejected)
        direction = F.normalize(chosen.added("prompt_embedding").to(contrast.dtype), dim=-1)
        weight = (-(1 - direction @ direction.T) / self.temperature).softmax(-1)
        return -F.logsigmoid(self.beta * weight * contrast).mean(1)


@dataclass(frozen=True)
class RPODiagonal(_Batch):
    """A pair's own loss, and some of its contrasts with the rejected completions of other prompts.

    The form without embeddings of arXiv 2402.10958; takes two pairs a batch at least.
    """

    paper: ClassVar[str] = "arXiv 2402.10958"
    formula: ClassVar[str] = (
        "d*l_ii + (1-d)*mean_{j != i} l_ij,  l_ij = -log sigmoid(beta*(R_chosen_i - R_rejected_j))"
    )
    watch: ClassVar[str] = (
        "``rewards/margins`` grows, and the spread of rewards across prompts shrinks: ``loss`` that stays "
        "high while ``rewards/accuracies`` is high tells of prompts whose rewards do not compare; raise "
        "diagonal_weight."
    )

    diagonal_weight: float = hyperparameter(0.8, "d: weight of a pair's own loss", ge=0, le=1)

    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] by pair."""
        losses = -F.logsigmoid(self.beta * _contrast(chosen, rejected))
        own = losses.diagonal()
        others = (losses.sum(1) - own) / max(1, len(own) - 1)
        return self.diagonal_weight * own + (1 - self.diagonal_weight) * others


@dataclass(frozen=True)
class BCOBatch(_Batch):
    """Chosen and rejected told apart by their rewards, shifted by the mean reward of the batch.

    Jung et al., arXiv 2404.04656, with the batch's mean for the running one.
    """

    paper: ClassVar[str] = "arXiv 2404.04656"
    formula: ClassVar[str] = "-log sigmoid(a - d) - log sigmoid(-(b - d)),  a, b = beta*R,  d = their mean"
    watch: ClassVar[str] = (
        "``rewards/chosen`` and ``rewards/rejected`` move apart, on either side of their batch's mean; both "
        "falling together does not show in ``loss``, but in ``logps/chosen``."
    )

    def losses(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Losses [B] by pair."""
        a, b = (self.beta * side.sum(side.log_ratio) for side in (chosen, rejected))
        shift = torch.cat([a, b]).detach().mean()
        return -F.logsigmoid(a - shift) - F.logsigmoid(shift - b)


def _contrast(chosen: Completions, rejected: Completions) -> Tensor:
    """R_chosen_i - R_rejected_j [B, B]."""
    return chosen.sum(chosen.log_ratio)[:, None] - rejected.sum(rejected.log_ratio)[None, :]
