"""Objectives with weights, and weightings on top: one objective for the trainer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .objective import CacheFacts, Completions, MarginObjective, Objective, PairLoss
from .weighting import Weighting


@dataclass(frozen=True)
class Part:
    """One of the objectives of a composition."""

    name: str
    objective: Objective
    coefficient: float = 1.0


@dataclass(frozen=True)
class Composition(Objective):
    """A weighted sum of objectives, the margins among them under weightings.

    Rewards are those of the first. Each part's own loss is logged as ``loss/NAME`` where there are several.
    """

    parts: tuple[Part, ...] = ()
    weightings: tuple[tuple[str, Weighting], ...] = ()

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """All that a part or a weighting reads."""
        given = frozenset[str]().union(*(part.objective.needs for part in self.parts))
        given -= {"token_weight"}
        return given.union(*(weighting.needs for _, weighting in self.weightings))

    @property
    def paper(self) -> str:  # type: ignore[override]
        """Where all of it comes from."""
        papers = [part.objective.paper for part in self.parts] + [one.paper for _, one in self.weightings]
        return ", ".join(dict.fromkeys(filter(None, papers)))

    @property
    def batch_level(self) -> bool:  # type: ignore[override]
        """Whether a part's loss of a pair depends on others of the batch."""
        return any(part.objective.batch_level for part in self.parts)

    def prepared(self, facts: CacheFacts) -> "Composition":
        """Every part and weighting with what it takes from the cache filled in."""
        return replace(
            self,
            parts=tuple(replace(part, objective=part.objective.prepared(facts)) for part in self.parts),
            weightings=tuple((name, weighting.prepared(facts)) for name, weighting in self.weightings),
        )

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The weighted sum of the parts' losses [B]."""
        weights = _Weights.of([one for _, one in self.weightings], chosen, rejected)
        weighted = weights.on(chosen, rejected)
        results = [
            _weigh(part.objective, weights, *weighted)
            if isinstance(part.objective, MarginObjective)
            else part.objective(chosen, rejected)
            for part in self.parts
        ]
        losses = [part.coefficient * one.loss for part, one in zip(self.parts, results, strict=True)]
        metrics: dict[str, Tensor] = {}
        for part, one in zip(self.parts, results, strict=True):
            metrics |= one.metrics
            if len(self.parts) > 1:
                metrics[f"loss/{part.name}"] = one.loss.detach()
        if weights.scale is not None:
            metrics["weights/pair"] = weights.scale.detach()
        if weights.loss is not None:
            metrics["weights/loss"] = weights.loss.detach()
        return PairLoss(
            sum(losses[1:], losses[0]), results[0].chosen_reward, results[0].rejected_reward, metrics
        )


@dataclass(frozen=True)
class _Weights:
    """The products of all weightings; None where there is nothing to multiply."""

    tokens: tuple[Tensor, Tensor] | None = None
    scale: Tensor | None = None
    loss: Tensor | None = None

    @classmethod
    def of(cls, weightings: Sequence[Weighting], chosen: Completions, rejected: Completions) -> "_Weights":
        tokens: tuple[Tensor, Tensor] | None = None
        scale: Tensor | None = None
        loss: Tensor | None = None
        for one in weightings:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not one.detached):
                if (found := one.token_weights(chosen, rejected)) is not None:
                    tokens = found if tokens is None else (tokens[0] * found[0], tokens[1] * found[1])
                scale = _times(scale, one.pair_scale(chosen, rejected))
                loss = _times(loss, one.loss_weight(chosen, rejected))
        return cls(tokens, scale, loss)

    def on(self, chosen: Completions, rejected: Completions) -> tuple[Completions, Completions]:
        """Both sides with their token weights, 0 at padding whatever a weighting put there."""
        if self.tokens is None:
            return chosen, rejected
        weights = [
            torch.where(side.mask, w, 0.0) for side, w in zip((chosen, rejected), self.tokens, strict=True)
        ]
        return replace(chosen, token_weight=weights[0]), replace(rejected, token_weight=weights[1])


def _times(product: Tensor | None, factor: Tensor | None) -> Tensor | None:
    return factor if product is None else product if factor is None else product * factor


def _weigh(
    objective: MarginObjective, weights: _Weights, chosen: Completions, rejected: Completions
) -> PairLoss:
    """The loss of a margin objective under the products of the weightings."""
    found = objective(chosen, rejected)
    if weights.scale is None and weights.loss is None:
        return found
    margin = objective.margin(chosen, rejected)
    loss = objective.link(margin if weights.scale is None else weights.scale * margin)
    return replace(found, loss=loss if weights.loss is None else weights.loss * loss)
