"""A third party's plugin: DPO that meets with trouble at a chosen call, and a loss that compares pairs.

``TROUBLE=KIND:CALL`` in the environment, or ``KIND:CALL:RANK`` for one process only, says what happens when.
"""

import os
import signal
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tdpo import MarginObjective, hookimpl

CALLS = Counter()


def of_a_model(side):
    """Whether a policy was asked; before one is loaded, a fit tries its objective on made-up values."""
    return side.logp.grad_fn is not None or not side.logp.requires_grad


@dataclass(frozen=True)
class Trouble(MarginObjective):
    """DPO, until the trouble comes."""

    def __call__(self, chosen, rejected):
        found = super().__call__(chosen, rejected)
        if not torch.is_grad_enabled() or not of_a_model(chosen):
            return found
        CALLS["trained"] += 1
        kind, call, *rank = os.environ.get("TROUBLE", "none:0").split(":")
        if CALLS["trained"] != int(call) or (rank and rank[0] != os.environ.get("RANK", "0")):
            return found
        # Recognisable by their content: the pairs whose chosen side is the longest of the batch.
        longest = chosen.length == chosen.length.max()
        if kind in ("nan", "inf"):
            return replace(found, loss=torch.where(longest, float(kind), found.loss))
        if kind == "gradient":  # of the square root at zero
            return replace(found, loss=found.loss + torch.sqrt(0 * found.loss.abs()))
        if kind == "memory":
            torch.empty(2**60, dtype=torch.uint8)
        for name in kind.split("+"):
            signal.raise_signal(signal.Signals[name])
        return found


@dataclass(frozen=True)
class Centred(MarginObjective):
    """DPO whose margin is measured from the mean margin of the batch."""

    batch_level: ClassVar[bool] = True

    def margin(self, chosen, rejected):
        own = self.beta * (chosen.sum(chosen.log_ratio) - rejected.sum(rejected.log_ratio))
        return own - own.mean()


@dataclass(frozen=True)
class Large(MarginObjective):
    """DPO beside which it asks for more memory than there is."""

    def margin(self, chosen, rejected):
        if of_a_model(chosen):
            torch.empty(2**60, dtype=torch.uint8)
        return super().margin(chosen, rejected)


class Hooks:
    """What the plugin's module would hold."""

    @staticmethod
    @hookimpl
    def tdpo_objectives():
        names = {"trouble": "Trouble", "centred": "Centred", "large": "Large"}
        return {name: f"trouble_plugin:{cls}" for name, cls in names.items()}
