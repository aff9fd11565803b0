"""DPO-BMC (Jiang et al., arXiv 2408.07471): the tokens that differ within a pair count for more.

Which tokens were edited is a statistic of the pair (``tdpo cache add --name edits --statistic edits``).
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..cache.pairs import Pair
from ..core.objective import Completions, MarginObjective, hyperparameter
from ..core.statistic import Column, Statistic
from ..core.weighting import Weighting

_CAP_HELP = "delta: most that an edited token's weight grows; 1.5 to 3 in the paper"


@dataclass(frozen=True)
class Edits(Statistic):
    """Which completion tokens are not in the other completion, by a sequence matcher over both."""

    columns: ClassVar[Mapping[str, Column]] = {
        "diff_mask": Column("token", doc="[T] 1 at tokens that differ within the pair, else 0")
    }
    needs_model: ClassVar[bool] = False

    def compute(self, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Mapping[str, Sequence[Any]]:
        """The masks of both sides."""
        found = [edited(pair) for pair in pairs]
        return {
            "chosen_diff_mask": [masks[0] for masks in found],
            "rejected_diff_mask": [masks[1] for masks in found],
        }


def edited(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Masks [T] float32 of the chosen and the rejected tokens that an edit of one into the other touches."""
    chosen, rejected = pair.chosen_ids.tolist(), pair.rejected_ids.tolist()
    masks = np.zeros(len(chosen), np.float32), np.zeros(len(rejected), np.float32)
    # Without autojunk=False it would overlook frequent tokens in completions of 200 and more.
    matcher = difflib.SequenceMatcher(None, rejected, chosen, autojunk=False)
    for kind, start, end, into, until in matcher.get_opcodes():
        if kind != "equal":
            masks[1][start:end] = 1
            masks[0][into:until] = 1
    return masks


@dataclass(frozen=True)
class BMC(Weighting):
    """Weigh edited tokens more, and more so those that the policy finds unlikely."""

    needs: ClassVar[frozenset[str]] = frozenset({"diff_mask"})
    paper: ClassVar[str] = "arXiv 2408.07471"
    formula: ClassVar[str] = "w_t = 1 + edited_t * min(1 / pi(y_t), cap)"
    watch: ClassVar[str] = (
        "``rewards/margins`` grows faster than without, an edited token counting up to 1 + cap times: "
        "``grad_norm`` that jumps asks for a lower beta or cap."
    )

    cap: float = hyperparameter(2.0, _CAP_HELP, gt=0)

    def token_weights(self, chosen: Completions, rejected: Completions) -> tuple[Tensor, Tensor]:
        """The weights [B, T] of both sides."""
        return _weight(chosen, chosen.logp, self.cap), _weight(rejected, rejected.logp, self.cap)


@dataclass(frozen=True)
class DPOBMC(MarginObjective):
    """DPO in which the tokens that differ within a pair count for more.

    arXiv 2408.07471, Eqs. 4-6. The released code weighs the reference's log-probabilities by its own
    probabilities, which is another objective: ``form`` = code.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"diff_mask"})
    paper: ClassVar[str] = "arXiv 2408.07471"
    formula: ClassVar[str] = (
        "-log sigmoid(beta*D'),  R' = sum_t (1 + edited_t*min(1/pi(y_t), cap)) log_ratio_t"
    )
    watch: ClassVar[str] = (
        "``rewards/margins`` grows faster than DPO's, an edited token counting up to 1 + cap times: hence "
        "the small beta. ``grad_norm`` that jumps asks for a lower cap; form=code starts away from a loss "
        "of log 2."
    )

    beta: float = hyperparameter(0.05, "strength of the pull towards the reference", gt=0)
    cap: float = hyperparameter(2.0, _CAP_HELP, gt=0)
    form: str = hyperparameter(
        "paper", "the paper's weights, or the released code's", choices=("paper", "code")
    )

    def reward(self, side: Completions) -> Tensor:
        """``beta * R'`` [B]."""
        weight = _weight(side, side.logp, self.cap)
        of_reference = weight if self.form == "paper" else _weight(side, side.ref_logp, self.cap)
        ratio = weight * side.logp - of_reference * side.ref_logp
        return self.beta * side.sum(ratio if side.token_weight is None else side.token_weight * ratio)


def _weight(side: Completions, logp: Tensor, cap: float) -> Tensor:
    """``1 + edited_t * min(1 / p_t, cap)`` [B, T], without gradient."""
    edited_tokens = torch.where(side.mask, side.added("diff_mask"), 0.0)
    return 1 + edited_tokens * torch.where(side.mask, torch.exp(-logp.detach()), 0.0).clamp(max=cap)
