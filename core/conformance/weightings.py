"""The checks of a weighting."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..objective import Completions
from ..weighting import Weighting
from .common import copies, declared, fail, options_are_checked
from .made_up import Watched, batch, padded_with, rows


def check_weighting(
    weighting: type[Weighting] | Weighting, *, added: Mapping[str, int] | None = None
) -> None:
    """Check that a weighting keeps to the contract of :class:`tdpo.Weighting`.

    That it is documented and its options are checked, that it gives something, finite and of the right
    shapes, that neither padding nor the other pairs of a batch matter, that it reads what it declares and
    nothing else, and that it survives pickling and copying.

    Args:
        weighting: the class, tried with its defaults, or an instance.
        added: of the added statistics that it needs, those that are vectors of a completion or of the pair:
            name -> length. Others are one number a token.

    Raises:
        ConformanceError: the first check that fails.
    """
    added = added or {}
    cls = weighting if isinstance(weighting, type) else type(weighting)
    declared(cls, Weighting)
    one: Weighting = cls() if isinstance(weighting, type) else weighting
    for check in (
        options_are_checked,
        _shapes,
        _reads_what_it_declares,
        _padding_never_matters,
        _company,
        _copies,
    ):
        check(one, added)


def given(weighting: Weighting, chosen: Completions, rejected: Completions) -> dict[str, Tensor]:
    """All that it gives for a batch, by name."""
    found: dict[str, Any] = {
        "pair_scale": weighting.pair_scale(chosen, rejected),
        "loss_weight": weighting.loss_weight(chosen, rejected),
    }
    if (tokens := weighting.token_weights(chosen, rejected)) is not None:
        found |= {"token_weights of chosen": tokens[0], "token_weights of rejected": tokens[1]}
    return {name: value for name, value in found.items() if value is not None}


def _shapes(weighting: Weighting, added: Mapping[str, int]) -> None:
    chosen, rejected = batch(added)
    found = given(weighting, chosen, rejected)
    if not found:
        fail(weighting, "gives nothing: override token_weights, pair_scale or loss_weight")
    for name, value in found.items():
        want = (4,) if name in ("pair_scale", "loss_weight") else tuple(chosen.mask.shape)
        if tuple(value.shape) != want:
            fail(weighting, f"{name} of 4 pairs is {list(value.shape)}, not {list(want)}")
        side = rejected if name.endswith("rejected") else chosen
        values = value if len(want) == 1 else value[side.mask]
        if not bool(values.isfinite().all()):
            fail(weighting, f"{name} is not finite")


def _reads_what_it_declares(weighting: Weighting, added: Mapping[str, int]) -> None:
    chosen, rejected = batch(added)
    given(weighting, chosen, rejected)
    read = set(chosen.seen) | set(rejected.seen)
    undeclared = read - {"logp", "ref_logp"} - set(weighting.needs)
    if undeclared:
        fail(weighting, f"reads {', '.join(sorted(undeclared))} without naming it in `needs`")
    unused = set(weighting.needs) - read
    if unused:
        fail(
            weighting,
            f"names {', '.join(sorted(unused))} in `needs` and never reads it: fits would pay for it",
        )


def _padding_never_matters(weighting: Weighting, added: Mapping[str, int]) -> None:
    found = []
    for fill in (0.0, 1e3, float("nan")):
        sides: tuple[Watched, ...] = tuple(padded_with(side, fill) for side in batch(added))
        found.append(_at_tokens(given(weighting, *sides), sides))
    for fill, values in zip((1e3, float("nan")), found[1:], strict=True):
        for name, value in values.items():
            if not torch.equal(value, found[0][name]):
                fail(weighting, f"{name} changes when padding holds {fill}")


def _at_tokens(values: Mapping[str, Tensor], sides: tuple[Watched, ...]) -> dict[str, Tensor]:
    """What is given, without what it says at padding, which no one reads."""
    masks = {"token_weights of chosen": sides[0].mask, "token_weights of rejected": sides[1].mask}
    return {name: (value[masks[name]] if name in masks else value).detach() for name, value in values.items()}


def _company(weighting: Weighting, added: Mapping[str, int]) -> None:
    sides = batch(added, seed=2)
    whole = given(weighting, *sides)
    half = given(weighting, *(rows(side, slice(0, 2)) for side in sides))
    for name, value in half.items():
        if not torch.allclose(value.detach(), whole[name][:2].detach(), equal_nan=True):
            fail(weighting, f"{name} of a pair depends on the other pairs of its batch")


def _copies(weighting: Weighting, added: Mapping[str, int]) -> None:
    want = given(weighting, *batch(added))
    for what, other in copies(weighting):
        again = given(other, *batch(added))
        if other != weighting or any(not torch.equal(again[name], value) for name, value in want.items()):
            fail(weighting, f"is another after {what}")
