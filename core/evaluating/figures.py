"""Figures of single pairs, from what a policy and the reference say of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from ...cache.pairs import SIDES, Pair
from ..errors import ModelError
from ..objective import Objective, PairLoss
from ..progress import Progress
from . import calibration, correlation
from .calibration import half_ties
from .scorer import PairScorer, ScoredBatch
from .table import Table

FACTS = (
    "run",
    "cache",
    "pair_id",
    "row",
    "prompt_id",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
    "length_difference",
    "ref_logps/chosen",
    "ref_logps/rejected",
    "ref_logps/margins",
)
"""What is known of pairs whatever the policy: the columns that are written beside its figures."""


@dataclass
class _Gathered:
    """Columns that grow batch by batch."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, values: dict[str, Any]) -> None:
        for name, one in values.items():
            self.parts.setdefault(name, []).append(np.asarray(one))

    def whole(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}


def evaluate_pairs(
    scorer: PairScorer,
    objective: Objective,
    rows: Sequence[int],
    *,
    name: str,
    bins: int,
    batch_size: int | None = None,
    quiet: bool = False,
) -> Table:
    """The table of the pairs at these rows of the scorer's cache.

    Args:
        scorer: of the policy, with what ``objective`` needs.
        objective: prepared; gives loss and rewards.
        rows: of the cache.
        name: of the policy, for progress and messages.
        bins: of the reliability table.
        batch_size: pairs that are read at a time, in the order of ``rows``.
        quiet: show no progress.

    Raises:
        ModelError: the policy gives a number that is not finite.
    """
    facts, figures, weights = _Gathered(), _Gathered(), _Gathered()
    with Progress(f"evaluating {name}", len(rows), "pairs", quiet=quiet) as progress, torch.no_grad():
        for batch in scorer.score(rows, batch_size or 32):
            facts.add(_facts(batch))
            loss = objective(batch.chosen, batch.rejected)
            _check_finite(loss, batch, name)
            own, weighed = pair_figures(loss, batch)
            figures.add(own)
            weights.add(weighed)
            progress.advance(len(batch.pairs))
    columns = facts.whole()
    # Batches come in the order of their lengths.
    order = np.argsort(columns["row"], kind="stable")
    table = Table(
        columns.pop("pair_id"),
        columns["prompt_id"],
        figures.whole(),
        weights.whole(),
        calibration.derived_figures(bins) | correlation.derived_figures(),
        columns,
        calibration.NO_INTERVAL,
    )
    return table.take(order)


def pair_figures(loss: PairLoss, batch: ScoredBatch) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Figures of B pairs, float64 [B], and the weights of those whose mean is over tokens.

    In nats where they are log-probs, divergences or entropies. ``docs/evaluation.md`` says what each is.
    """
    chosen, rejected = batch.chosen, batch.rejected
    margins = loss.chosen_reward.double() - loss.rejected_reward.double()
    figures = {
        "loss": loss.loss,
        "rewards/chosen": loss.chosen_reward,
        "rewards/rejected": loss.rejected_reward,
        "rewards/margins": margins,
    }
    figures |= _both("logps", chosen.sum(chosen.logp), rejected.sum(rejected.logp))
    ratios = [side.sum(side.logp.double() - side.ref_logp.double()) for side in (chosen, rejected)]
    figures |= _both("log_ratios", *ratios)
    for name, column in (("kl", "forward_kl"), ("reverse_kl", "reverse_kl")):
        if getattr(chosen, column) is not None:
            a, b = (side.sum(getattr(side, column)) for side in (chosen, rejected))
            # The other way round than rewards: what the TDPO paper draws.
            figures |= {f"{name}/chosen": a, f"{name}/rejected": b, f"{name}/margin": b - a}
    for name, value in loss.metrics.items():
        figures.setdefault(name, value.expand(len(margins)))
    arrays = {name: value.detach().double().numpy() for name, value in figures.items()}
    arrays["rewards/accuracies"] = half_ties(arrays["rewards/margins"])
    arrays |= calibration.pair_figures(arrays["rewards/margins"])
    arrays |= _rules(arrays["rewards/margins"], batch)
    over_tokens, weights = _over_tokens(batch)
    return _ordered(arrays | over_tokens), weights


def _both(name: str, chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}/chosen": chosen, f"{name}/rejected": rejected, f"{name}/margins": chosen - rejected}


def _over_tokens(batch: ScoredBatch) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Means over a pair's tokens, and how many those are."""
    figures, weights = {}, {}
    for name, column in (("logps_per_token", "logp"), ("entropy", "entropy"), ("ref_entropy", "ref_entropy")):
        sides = {side: getattr(batch, side) for side in SIDES}
        if getattr(sides["chosen"], column) is None:
            continue
        sums = {side: one.sum(getattr(one, column)).double().numpy() for side, one in sides.items()}
        tokens = {side: one.length.double().numpy() for side, one in sides.items()}
        if name != "logps_per_token":
            figures[name] = (sums["chosen"] + sums["rejected"]) / (tokens["chosen"] + tokens["rejected"])
            weights[name] = tokens["chosen"] + tokens["rejected"]
        for side in SIDES:
            figures[f"{name}/{side}"] = sums[side] / tokens[side]
            weights[f"{name}/{side}"] = tokens[side]
    return figures, weights


def _rules(margins: np.ndarray, batch: ScoredBatch) -> dict[str, np.ndarray]:
    """How often simple rules are right, and how often the implicit reward decides as they do."""
    chosen, rejected = batch.chosen, batch.rejected
    lengths = (chosen.length - rejected.length).double().numpy()
    likelier = (chosen.sum(chosen.ref_logp) - rejected.sum(rejected.ref_logp)).double().numpy()
    found = {}
    for name, difference in (("longer", lengths), ("shorter", -lengths), ("likelier", likelier)):
        found[f"rules/{name}"] = half_ties(difference)
        # One half where either of them has no preference.
        found[f"agreement/{name}"] = half_ties(np.sign(margins) * np.sign(difference))
    return found


_ORDER = (
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "loss",
)


def _ordered(figures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: figures[name] for name in dict.fromkeys([*_ORDER, *figures])}


def _facts(batch: ScoredBatch) -> dict[str, Any]:
    """What is known of pairs whatever the policy."""
    pairs = batch.pairs
    chosen, rejected = (np.array([len(pair.ids(side)) for pair in pairs], np.int64) for side in SIDES)
    likely = [side.sum(side.ref_logp).double().numpy() for side in (batch.chosen, batch.rejected)]
    return {
        "pair_id": [pair.pair_id for pair in pairs],
        "row": np.array([pair.row for pair in pairs], np.int64),
        "prompt_id": [prompt_id(pair) for pair in pairs],
        "prompt_tokens": np.array([len(pair.prompt_ids) for pair in pairs], np.int64),
        "chosen_tokens": chosen,
        "rejected_tokens": rejected,
        "length_difference": chosen - rejected,
        "ref_logps/chosen": likely[0],
        "ref_logps/rejected": likely[1],
        "ref_logps/margins": likely[0] - likely[1],
    }


def prompt_id(pair: Pair) -> str:
    """Content hash of a pair's prompt, 32 hexadecimal digits: BLAKE2b of its token ids as ``<i4``."""
    return blake2b(pair.prompt_ids.astype("<i4", copy=False).tobytes(), digest_size=16).hexdigest()


def _check_finite(loss: PairLoss, batch: ScoredBatch, name: str) -> None:
    values = {f"logps/{side}": getattr(batch, side) for side in SIDES}
    sums = {figure: side.sum(side.logp) for figure, side in values.items()}
    for figure, value in {**sums, "loss": loss.loss}.items():
        wrong = ~value.isfinite()
        if wrong.any():
            pair = batch.pairs[int(wrong.nonzero()[0])]
            raise ModelError(
                f"{name}: its {figure} of pair {pair.pair_id} is {float(value[wrong][0])}; the policy's "
                "weights are broken, or overflow in this precision: try --dtype float32"
            )
