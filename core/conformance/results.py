"""What can be wrong with what an objective or a weighting returns."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..objective import Completions, PairLoss
from ..weighting import Weighting


def result_faults(found: Any, pairs: int) -> Iterator[str]:
    """What is wrong with an objective's result for so many pairs, as it is said after its name."""
    if not isinstance(found, PairLoss):
        yield f"returns {type(found).__name__}, not a tdpo.PairLoss"
        return
    each = {
        "loss": found.loss,
        "chosen_reward": found.chosen_reward,
        "rejected_reward": found.rejected_reward,
    }
    for name, value in each.items():
        if not isinstance(value, Tensor) or value.shape != (pairs,):
            yield f"{name} of {pairs} pairs is {_shape(value)}, not [{pairs}]"
            return
    if not isinstance(found.metrics, Mapping):
        yield f"metrics is {type(found.metrics).__name__}, not names with tensors"
        return
    for name, value in found.metrics.items():
        if not isinstance(value, Tensor) or value.shape not in ((), (pairs,)):
            yield f"the metric {name} is {_shape(value)}, neither [{pairs}] nor a scalar tensor"
    if not found.loss.requires_grad:
        yield "the loss has no gradient"
    for name, value in {**each, **found.metrics}.items():
        if name != "loss" and isinstance(value, Tensor) and value.requires_grad:
            yield f"{name} has a gradient: detach what is only logged"


def observed_faults(running: frozenset[str], found: Any) -> Iterator[str]:
    """What is wrong with what an objective observes, given the names of what it reads the means of."""
    if not isinstance(found, Mapping) or set(found) != running:
        given = ", ".join(sorted(found)) if isinstance(found, Mapping) else type(found).__name__
        yield f"observe gives {given or 'nothing'}, and `running` names {', '.join(sorted(running))}"
        return
    for name, values in found.items():
        if not isinstance(values, Tensor) or values.dim() != 1:
            yield f"observe gives {name} as {_shape(values)}, not numbers [n]"
        elif not bool(values.isfinite().all()):
            yield f"observe gives a {name} that is not finite"


def given(weighting: Weighting, chosen: Completions, rejected: Completions) -> dict[str, Tensor]:
    """All that a weighting gives for a batch, by name."""
    found: dict[str, Any] = {
        "pair_scale": weighting.pair_scale(chosen, rejected),
        "loss_weight": weighting.loss_weight(chosen, rejected),
    }
    if (tokens := weighting.token_weights(chosen, rejected)) is not None:
        if isinstance(tokens, Tensor) or len(tokens) != 2:
            tokens = (tokens, None)
        found |= {"token_weights of chosen": tokens[0], "token_weights of rejected": tokens[1]}
    return {
        name: value for name, value in found.items() if value is not None or name.startswith("token_weights")
    }


def weight_faults(found: Mapping[str, Any], chosen: Completions, rejected: Completions) -> Iterator[str]:
    """What is wrong with what :func:`given` found."""
    pairs = len(chosen.mask)
    if not found:
        yield "gives nothing: override token_weights, pair_scale or loss_weight"
    for name, value in found.items():
        side = rejected if name.endswith("rejected") else chosen
        want = (pairs,) if name in ("pair_scale", "loss_weight") else tuple(side.mask.shape)
        if not isinstance(value, Tensor) or tuple(value.shape) != want:
            yield f"{name} of {pairs} pairs is {_shape(value)}, not {list(want)}"
        elif not bool((value if len(want) == 1 else value[side.mask]).isfinite().all()):
            yield f"{name} is not finite"


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
