"""A batch of cached pairs as the policy and the reference see it: what objectives and evaluations read."""

from collections.abc import Mapping
from typing import Any

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
    """
    scores = model(
        **tokens_of(batch),
        **exact.arguments(batch),
        score_entropy=True,
        score_log_collision="log_collision" in needs,
    )
    return completions(
        scores,
        batch,
        head=statistics["head"],
        vocab_size=statistics["vocab_size"],
        estimator=estimator,
        kl_gradient="forward_kl" in needs,
    )
