"""An objective tried on two of the cache's pairs before a model is loaded: what a plugin gets wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .composition import Composition
from .conformance.results import given, observed_faults, result_faults, weight_faults
from .errors import PluginError, TdpoError
from .objective import STATISTICS, Completions, Objective
from .registry import Registered, objectives, weightings
from .scoring.added import added_sides
from .scoring.layout import completion_mask
from .training.data import collate
from .weighting import Weighting

_PAIRS = 2


def try_out(objective: Objective, plugins: Sequence[str], reader: Any) -> None:
    """Compute the loss of two pairs from made-up log-probabilities and what else the cache holds of them.

    Args:
        objective: what is to be trained with, prepared.
        plugins: ``NAME`` or ``NAME=WEIGHT``, as it was asked for.
        reader: of the cache, with the scores that are read beside it.

    Raises:
        PluginError: a part of it fails, or returns what cannot be trained with; names its distribution.
    """
    rows = range(min(_PAIRS, len(reader)))
    if not rows:
        return
    sides = _sides(reader.read(rows, statistics=frozenset({"ref_logp"})))
    if isinstance(objective, Composition):
        for part in objective.parts:
            _check(objectives()[part.name], "objective", _objective_faults(part.objective, *sides))
        for name, one in objective.weightings:
            _check(weightings()[name], "weighting", _weighting_faults(one, *sides))
    else:
        name = plugins[0].partition("=")[0]
        _check(objectives()[name], "objective", _objective_faults(objective, *sides))


def made_up_side(mask: Tensor, seed: int, extra: Mapping[str, Tensor]) -> Completions:
    """A side with every statistic that an objective may read, ordinary values, the policy's with gradient.

    Args:
        mask: [B, T] bool.
        seed: of the values.
        extra: the added statistics.
    """
    generator = torch.Generator().manual_seed(seed)

    def some() -> Tensor:
        return torch.rand(mask.shape, generator=generator) + 0.1

    values: dict[str, Any] = {name: some() for name in STATISTICS}
    values |= {"logp": (-some()).requires_grad_(), "ref_logp": -some(), "log_collision": -some()}
    seeds = torch.randint(1 << 62, (len(mask),), generator=generator)
    return Completions(mask=mask, extra=extra, draw_seed=seeds, **values)


def _sides(records: Sequence[Any]) -> tuple[Completions, Completions]:
    batch = collate(records)
    mask = completion_mask(batch["lengths"])
    chosen, rejected = added_sides(batch, mask)
    pairs = len(records)
    return made_up_side(mask[:pairs], 3, chosen), made_up_side(mask[pairs:], 5, rejected)


def _objective_faults(objective: Objective, chosen: Completions, rejected: Completions) -> Iterator[str]:
    if objective.running:
        observed = objective.observe(chosen, rejected)
        yield from observed_faults(objective.running, observed)
        means = {name: values.detach().mean() for name, values in observed.items()}
        chosen, rejected = replace(chosen, running=means), replace(rejected, running=means)
    found = objective(chosen, rejected)
    yield from result_faults(found, len(chosen.mask))
    if not bool(found.loss.isfinite().all()):
        yield "the loss of two pairs at ordinary log-probabilities is NaN or infinite"
    leaves = (chosen.logp, rejected.logp)
    gradients = torch.autograd.grad(found.loss.sum(), leaves, allow_unused=True)
    if not all(bool(one.isfinite().all()) for one in gradients if one is not None):
        yield "the gradient of two pairs at ordinary log-probabilities is NaN or infinite"


def _weighting_faults(weighting: Weighting, chosen: Completions, rejected: Completions) -> Iterator[str]:
    yield from weight_faults(given(weighting, chosen, rejected), chosen, rejected)


def _check(one: Registered, kind: str, faults: Iterator[str]) -> None:
    try:
        fault = next(faults, None)
    except TdpoError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise PluginError(_message(one, kind, f"fails with {type(error).__name__}: {said}")) from error
    if fault is not None:
        raise PluginError(_message(one, kind, fault))


def _message(one: Registered, kind: str, fault: str) -> str:
    return (
        f"{kind} {one.name!r} of {one.distribution}: {fault} (tried on two pairs of the cache, no model was "
        f"loaded); update or uninstall {one.distribution}: its author finds more with "
        f"tdpo.testing.check_{kind}"
    )
