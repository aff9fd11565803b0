"""Means over a run so far, for objectives whose loss reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..objective import Completions, Objective
from .batches import MicroBatch

Totals = dict[str, list[float]]


class RunningMeans:
    """The means of what an objective observes, over all pairs trained on so far, in all processes.

    They are taken in once an optimiser step, before its first loss, so that a loss reads the same ones
    however its step is cut up. Sums are kept in float64.

    Args:
        objective: the loss; one that names nothing in ``running`` is given nothing.
    """

    def __init__(self, objective: Objective):
        self.objective = objective
        self._totals: Totals = {name: [0.0, 0.0] for name in sorted(objective.running)}
        self._waiting = False
        self._restored = False

    def look_ahead(self, batches: Sequence[Sequence[MicroBatch]], trainer: Any) -> None:
        """Take in an optimiser step, by a forward pass over its micro-batches; all processes come here.

        Where one process has one micro-batch, the loss's own pass tells as much: see :meth:`given_to`.
        """
        micros = [micro for batch in batches for micro in batch]
        if not self._totals or not micros:
            return
        self._waiting = len(micros) == 1 and trainer.accelerator.num_processes == 1
        if self._waiting:
            return
        sums = torch.zeros(len(self._totals), 2, dtype=torch.float64)
        for micro in micros:
            if (sides := trainer.training_sides(trainer.model_wrapped, micro)) is not None:
                sums += self._observed(*sides)
        self._add(trainer.accelerator.gather(sums[None].to(trainer.args.device)).sum(0))

    def given_to(
        self, chosen: Completions, rejected: Completions, *, training: bool
    ) -> tuple[Completions, Completions]:
        """Both sides with the means in ``running``; 0 before anything was trained on."""
        if not self._totals:
            return chosen, rejected
        if training and self._waiting:
            self._add(self._observed(chosen, rejected))
            self._waiting = False
        like = chosen.sum(chosen.logp).detach()
        means = {name: like.new_tensor(total / max(1.0, n)) for name, (total, n) in self._totals.items()}
        return replace(chosen, running=means), replace(rejected, running=means)

    def state(self) -> Totals:
        """Name -> [total, count], the same in every process, for :meth:`restore`."""
        return self._totals

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Go on from what :meth:`state` gave, as far as it is about the same figures.

        Where a run goes on in the middle of an epoch, Trainer loads a checkpoint's state when the first step
        is at hand, and taken in: that is added. Nothing is loaded twice.
        """
        for name, (total, count) in ({} if self._restored else state).items():
            if name in self._totals:
                self._totals[name][0] += total
                self._totals[name][1] += count
        self._restored = True

    @torch.no_grad()
    def _observed(self, chosen: Completions, rejected: Completions) -> Tensor:
        """Sum and number [F, 2] of each figure, float64 on the CPU."""
        found = self.objective.observe(chosen, rejected)
        return torch.tensor(
            [[float(found[name].cpu().double().sum()), found[name].numel()] for name in self._totals],
            dtype=torch.float64,
        )

    def _add(self, sums: Tensor) -> None:
        for totals, (total, count) in zip(self._totals.values(), sums.tolist(), strict=True):
            totals[0] += total
            totals[1] += count
