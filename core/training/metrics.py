"""The figures of a batch of pairs, and their means between two logged lines."""

import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ..objective import Completions, PairLoss


@torch.no_grad()
def pair_metrics(loss: PairLoss, chosen: Completions, rejected: Completions) -> dict[str, Tensor]:
    """Per-pair figures [B], detached, under the names users of preference trainers know.

    rewards/* are the objective's implicit rewards; logps/* and kl/* are sums over a completion's tokens, in
    nats; kl/* is the sequential forward KL(ref || pi), kl/margin rejected minus chosen (the TDPO paper's
    curves); entropy is the policy's, a mean over both completions' tokens.
    """
    margins = loss.chosen_reward - loss.rejected_reward
    figures = {
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
        figures["entropy"] = (chosen.mean(chosen.entropy) + rejected.mean(rejected.entropy)) / 2
    for name, value in loss.metrics.items():
        figures[name] = value.detach().expand(len(margins))
    return figures


class Means:
    """Running means over pairs, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Take in per-pair figures [B]."""
        for name, value in figures.items():
            total = value.double().sum() if value.device.type != "mps" else value.float().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.count += len(next(iter(figures.values())))

    def take(self, gather: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means, over all processes when ``gather`` is given; starts over."""
        if not self.count:
            return {}
        names = sorted(self.sums)
        totals = torch.stack([self.sums[name] for name in names] + [self._count_like()])
        if gather is not None:
            totals = gather(totals[None]).sum(0)
        values = (totals[:-1] / totals[-1]).tolist()
        self.__init__()  # type: ignore[misc]
        return dict(zip(names, values, strict=True))

    def _count_like(self) -> Tensor:
        return torch.as_tensor(self.count, dtype=next(iter(self.sums.values())).dtype).to(
            next(iter(self.sums.values())).device
        )


def peak_memory_gb() -> float:
    """Largest memory held so far: the GPU's allocations where one is used, else this process's, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
