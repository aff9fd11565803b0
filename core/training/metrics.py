"""The figures of a batch of pairs, and their means between two logged lines."""

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..objective import Completions, PairLoss


@dataclass(frozen=True)
class TokenMean:
    """A figure that is a mean over tokens and not over pairs."""

    total: Tensor
    """[B], summed over a pair's tokens."""
    tokens: Tensor
    """[B]: how many."""


@torch.no_grad()
def pair_metrics(loss: PairLoss, chosen: Completions, rejected: Completions) -> dict[str, Tensor | TokenMean]:
    """Figures of B pairs, detached, under the names that users of TRL's trainers know.

    All are [B] but for entropy, the policy's mean over all completion tokens. rewards/* are the objective's
    implicit rewards; logps/* and kl/* are sums over a completion's tokens, in nats; kl/* is the sequential
    forward KL(ref || pi), kl/margin rejected minus chosen (the TDPO paper's curves).
    """
    margins = loss.chosen_reward - loss.rejected_reward
    figures: dict[str, Tensor | TokenMean] = {
        "loss": loss.loss.detach(),
        "rewards/chosen": loss.chosen_reward,
        "rewards/rejected": loss.rejected_reward,
        "rewards/accuracies": (margins > 0).float(),
        "rewards/margins": margins,
        "logps/chosen": chosen.sum(chosen.logp),
        "logps/rejected": rejected.sum(rejected.logp),
    }
    if chosen.forward_kl is not None:
        kl_chosen, kl_rejected = chosen.sum(chosen.forward_kl), rejected.sum(rejected.forward_kl)
        figures |= {"kl/chosen": kl_chosen, "kl/rejected": kl_rejected, "kl/margin": kl_rejected - kl_chosen}
    if chosen.entropy is not None:
        figures["entropy"] = TokenMean(
            chosen.sum(chosen.entropy) + rejected.sum(rejected.entropy), chosen.length + rejected.length
        )
    for name, value in loss.metrics.items():
        figures[name] = value.detach().expand(len(margins))
    return figures


class Means:
    """Running means over pairs, or over tokens, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, figures: dict[str, Tensor | TokenMean]) -> None:
        """Take in the figures of some pairs."""
        for name, value in figures.items():
            if isinstance(value, TokenMean):
                self._add(name, value.total, value.tokens.sum())
            else:
                self._add(name, value, len(value))

    def _add(self, name: str, values: Tensor, count: Tensor | float) -> None:
        total = values.double().sum() if values.device.type != "mps" else values.float().sum()
        self._totals[name] = self._totals.get(name, 0) + total
        self._counts[name] = self._counts.get(name, 0) + count

    def state(self) -> dict[str, list[float]]:
        """Name -> [total, count] of what was taken in here, for :meth:`restore`."""
        return {name: [float(total), float(self._counts[name])] for name, total in self._totals.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Go on from what :meth:`state` gave."""
        for name, (total, count) in state.items():
            self._totals[name], self._counts[name] = torch.tensor(total, dtype=torch.float64), count

    def take(self, gather: Callable[[list[Any]], list[Any]] | None = None) -> dict[str, float]:
        """The means, and a new start.

        Args:
            gather: puts the lists of all processes together; each process must come here, also one without
                pairs.
        """
        names = sorted(self._totals)
        sums: list[Any] = [{}]
        if names:
            totals = torch.stack([self._totals[name] for name in names])
            counts = [torch.as_tensor(self._counts[name]).to(totals) for name in names]
            sums = [dict(zip(names, torch.stack([totals, torch.stack(counts)], 1).tolist(), strict=True))]
        self._totals, self._counts = {}, {}
        means: dict[str, list[float]] = {}
        for of_process in sums if gather is None else gather(sums):
            for name, (total, count) in of_process.items():
                before = means.setdefault(name, [0.0, 0.0])
                before[0] += total
                before[1] += count
        return {name: total / count for name, (total, count) in sorted(means.items()) if count}


def peak_memory_gb() -> float:
    """Largest memory held so far: the GPU's allocations where one is used, else this process's, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
