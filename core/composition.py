"""Objectives with weights, and weightings on top: one objective for the trainer."""

from collections.abc import Iterator, Mapping, Sequence
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

    @property
    def watch(self) -> str:  # type: ignore[override]
        """What to watch of all of it."""
        said = [part.objective.watch for part in self.parts] + [one.watch for _, one in self.weightings]
        return " ".join(filter(None, said))

    @property
    def running(self) -> frozenset[str]:  # type: ignore[override]
        """The parts' running figures, each after its part's name."""
        return frozenset(f"{part.name}/{name}" for part in self.parts for name in part.objective.running)

    def observe(self, chosen: Completions, rejected: Completions) -> Mapping[str, Tensor]:
        """What the parts observe, under the names in ``running``."""
        return {
            f"{part.name}/{name}": values
            for part, sides in self._given(chosen, rejected, _Weights.of(self._weightings, chosen, rejected))
            if part.objective.running
            for name, values in part.objective.observe(*sides).items()
        }

    def prepared(self, facts: CacheFacts) -> "Composition":
        """Every part and weighting with what it takes from the cache filled in."""
        return replace(
            self,
            parts=tuple(replace(part, objective=part.objective.prepared(facts)) for part in self.parts),
            weightings=tuple((name, weighting.prepared(facts)) for name, weighting in self.weightings),
        )

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The weighted sum of the parts' losses [B]."""
        weights = _Weights.of(self._weightings, chosen, rejected)
        results = [
            _weigh(part.objective, weights, *sides)
            if isinstance(part.objective, MarginObjective)
            else part.objective(*sides)
            for part, sides in self._given(chosen, rejected, weights)
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

    def weigh_tokens(self, chosen: Completions, rejected: Completions) -> tuple[Completions, Completions]:
        """Both sides as a margin is given them: with the product of the weightings' token weights."""
        return _Weights.of(self._weightings, chosen, rejected).on(chosen, rejected)

    @property
    def _weightings(self) -> list[Weighting]:
        return [one for _, one in self.weightings]

    def _given(
        self, chosen: Completions, rejected: Completions, weights: "_Weights"
    ) -> Iterator[tuple[Part, tuple[Completions, Completions]]]:
        """What each part is given: margins under the weights, running figures by their own names."""
        weighted = weights.on(chosen, rejected)
        for part in self.parts:
            a, b = weighted if isinstance(part.objective, MarginObjective) else (chosen, rejected)
            if part.objective.running:
                a, b = _running_of(part, a), _running_of(part, b)
            yield part, (a, b)


def _running_of(part: Part, side: Completions) -> Completions:
    start = f"{part.name}/"
    own = {name.removeprefix(start): x for name, x in side.running.items() if name.startswith(start)}
    return replace(side, running=own)


@dataclass(frozen=True)
class Settled(Objective):
    """An objective whose running means are those that a run came to, for evaluations outside of it."""

    objective: Objective
    means: Mapping[str, float]

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """All that the objective reads."""
        return self.objective.needs

    @property
    def batch_level(self) -> bool:  # type: ignore[override]
        """Whether the objective's loss of a pair depends on others of the batch."""
        return self.objective.batch_level

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        """The objective's loss at these means."""
        like = chosen.sum(chosen.logp).detach()
        means = {name: like.new_tensor(mean) for name, mean in self.means.items()}
        return self.objective(replace(chosen, running=means), replace(rejected, running=means))


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
