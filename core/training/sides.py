"""A batch of cached pairs as the policy and the reference see it: what objectives and evaluations read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..draws import draw_seeds
from ..objective import Completions
from ..scoring.completions import completions
from .batches import MicroBatch, tokens_of
from .divergences import ExactDivergences


def policy_sides(
    model: Any,
    batch: MicroBatch,
    statistics: Mapping[str, Any],
    exact: ExactDivergences,
    *,
    needs: frozenset[str],
    estimator: str,
    seed: int = 0,
    epoch: int = 0,
) -> tuple[Completions, Completions]:
    """Chosen and rejected side of ``B`` pairs.

    Args:
        model: the policy, made to score by :func:`~tdpo.core.scoring.forward.enable_scoring`, or a wrapper.
        batch: what :func:`~tdpo.core.training.data.collate` made, on the model's device.
        statistics: of the cache's identity: ``head`` and ``vocab_size``.
        exact: what of the divergences comes from the reference's whole distributions.
        needs: what is read beyond the log-probs. The forward KL is there without that, for the log; its
            gradient is not. The policy's entropy always is.
        estimator: of the forward KL from a sample.
        seed: of the run; what is drawn of a completion depends on it.
        epoch: the same.
    """
    scores = model(
        **tokens_of(batch),
        **exact.arguments(batch),
        score_entropy=True,
        score_log_collision="log_collision" in needs,
    )
    chosen, rejected = completions(
        scores,
        batch,
        head=statistics["head"],
        vocab_size=statistics["vocab_size"],
        estimator=estimator,
        kl_gradient="forward_kl" in needs,
    )
    if "draw_seed" in needs:
        seeds = draw_seeds(batch["pair_ids"], seed, epoch)
        chosen, rejected = (
            replace(side, draw_seed=one) for side, one in zip((chosen, rejected), seeds, strict=True)
        )
    return chosen, rejected
