"""The checks of a weighting."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..weighting import Weighting
from .common import copies, declared, draws_by_seed, fail, options_are_checked, watches_what_is_logged
from .made_up import Watched, batch, padded_with, rows
from .results import given, weight_faults


def check_weighting(
    weighting: type[Weighting] | Weighting, *, added: Mapping[str, int] | None = None
) -> None:
    """Check that a weighting keeps to the contract of :class:`tdpo.Weighting`.

    That it is documented, watches figures that are logged and checks its options, that it gives something,
    finite and of the right shapes, that neither padding nor the other pairs of a batch nor torch's random
    state matter, that it reads what it declares and nothing else, and that it survives pickling and copying.

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
        _watch,
        _shapes,
        _draws,
        _reads_what_it_declares,
        _padding_never_matters,
        _company,
        _copies,
    ):
        check(one, added)


def _watch(weighting: Weighting, added: Mapping[str, int]) -> None:
    watches_what_is_logged(weighting, ())


def _shapes(weighting: Weighting, added: Mapping[str, int]) -> None:
    sides = batch(added)
    for fault in weight_faults(given(weighting, *sides), *sides):
        fail(weighting, fault)


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


def _draws(weighting: Weighting, added: Mapping[str, int]) -> None:
    sides = batch(added)
    draws_by_seed(weighting, lambda: [*_at_tokens(given(weighting, *sides), sides).values()])


def _copies(weighting: Weighting, added: Mapping[str, int]) -> None:
    want = given(weighting, *batch(added))
    for what, other in copies(weighting):
        again = given(other, *batch(added))
        if other != weighting or any(not torch.equal(again[name], value) for name, value in want.items()):
            fail(weighting, f"is another after {what}")
