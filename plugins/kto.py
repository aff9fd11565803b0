"""KTO (Ethayarajh et al., arXiv 2402.01306) on pairs: a desirable example and an undesirable one."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.objective import Completions, Objective, PairLoss, hyperparameter

_D_HELP = "weight of desirable examples"
_U_HELP = "weight of undesirable examples; the paper keeps the ratio of both weights within [1, 4/3]"


@dataclass(frozen=True)
class KTOGivenZ(Objective):
    """Each side's value against a reference point that is given.

    arXiv 2402.01306; z0 is the KL from the reference in nats, at least 0.
    """

    paper: ClassVar[str] = "arXiv 2402.01306"
    formula: ClassVar[str] = (
        "(lD*(1 - sigmoid(beta*(R_chosen - z0))) + lU*(1 - sigmoid(beta*(z0 - R_rejected)))) / 2"
    )
    watch: ClassVar[str] = (
        "``rewards/chosen`` goes above beta*z0 and ``rewards/rejected`` below it. Both terms saturate: "
        "``grad_norm`` that dies early while ``rewards/accuracies`` is low asks for a smaller beta."
    )

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)
    z0: float = hyperparameter(0.0, "reference point, in nats", ge=0)
    lambda_d: float = hyperparameter(1.0, _D_HELP, gt=0)
    lambda_u: float = hyperparameter(1.0, _U_HELP, gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """Mean of the two examples' losses."""
        a, b = chosen.sum(chosen.log_ratio), rejected.sum(rejected.log_ratio)
        loss = kahneman_tversky(a, b, self.z0, self.z0, self.beta, self.lambda_d, self.lambda_u)
        return PairLoss(loss, self.beta * a.detach(), self.beta * b.detach())


@dataclass(frozen=True)
class KTOBatch(Objective):
    """KTO whose reference point is the batch's mean log-ratio.

    An estimate from the completions themselves, which is biased; at least 0, without gradient. The paper's
    own, from mismatched prompts and completions, is not offered: a cache could hold the reference's
    log-probability of such a completion, but the policy's changes with every step, and no cached pair has it:
    it takes a forward pass over as many sequences again.
    """

    batch_level: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2402.01306"
    formula: ClassVar[str] = "kto_given_z with z0 = max(0, mean R over the batch)"
    watch: ClassVar[str] = (
        "``kto/z0`` grows as the policy leaves the reference: ``rewards/chosen`` must stay above beta times "
        "it. At 0 for long, both sides fall together: ``logps/chosen`` tells."
    )

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)
    lambda_d: float = hyperparameter(1.0, _D_HELP, gt=0)
    lambda_u: float = hyperparameter(1.0, _U_HELP, gt=0)

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """Mean of the two examples' losses."""
        a, b = chosen.sum(chosen.log_ratio), rejected.sum(rejected.log_ratio)
        z0 = torch.cat([a, b]).detach().mean().clamp(min=0)
        loss = kahneman_tversky(a, b, z0, z0, self.beta, self.lambda_d, self.lambda_u)
        return PairLoss(loss, self.beta * a.detach(), self.beta * b.detach(), {"kto/z0": z0})


@dataclass(frozen=True)
class KTOPairLegacy(Objective):
    """The ``kto_pair`` that trainers once had: each side's reference point is the other side's mean.

    It sent gradients through the means, and does here unless ``detach``.
    """

    batch_level: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv 2402.01306"
    formula: ClassVar[str] = (
        "(1 - sigmoid(beta*(R_chosen - z_rejected)) + 1 - sigmoid(beta*(z_chosen - R_rejected))) / 2,  "
        "z = max(0, mean R of a side)"
    )
    watch: ClassVar[str] = (
        "``rewards/rejected`` falls while ``rewards/chosen`` holds; both falling together is the mean's "
        "gradient, which detach=true stops."
    )

    beta: float = hyperparameter(0.1, "strength of the pull towards the reference", gt=0)
    detach: bool = hyperparameter(False, "send no gradient through the means")

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """Mean of the two examples' losses."""
        a, b = chosen.sum(chosen.log_ratio), rejected.sum(rejected.log_ratio)
        of_chosen, of_rejected = (x.detach() if self.detach else x for x in (a, b))
        means = of_chosen.mean().clamp(min=0), of_rejected.mean().clamp(min=0)
        loss = kahneman_tversky(a, b, means[1], means[0], self.beta, 1.0, 1.0)
        return PairLoss(loss, self.beta * a.detach(), self.beta * b.detach())


def kahneman_tversky(
    a: Tensor,
    b: Tensor,
    z_chosen: Tensor | float,
    z_rejected: Tensor | float,
    beta: float,
    lambda_d: float,
    lambda_u: float,
) -> Tensor:
    """Mean loss [B] of a desirable and an undesirable log-ratio [B] against their reference points."""
    return 0.5 * (
        lambda_d * (beta * (z_chosen - a)).sigmoid() + lambda_u * (beta * (b - z_rejected)).sigmoid()
    )
