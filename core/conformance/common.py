"""What objectives and weightings are both checked for."""

import copy
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import TdpoError

LOGGED = (
    *("loss", "entropy", "grad_norm", "learning_rate", "weights/pair", "weights/loss"),
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "kl/chosen", "kl/rejected", "kl/margin"),
)
"""Figures of every run, where its objective, weightings and cache give them."""


class ConformanceError(AssertionError):
    """An objective does not keep to the contract; says which part of it, and how."""


def fail(one: Any, what: str) -> None:
    """Say what is wrong with an objective or a weighting.

    Raises:
        ConformanceError: always.
    """
    cls = one if isinstance(one, type) else type(one)
    raise ConformanceError(f"{cls.__name__}: {what}")


def declared(cls: type[Any], base: type[Any]) -> None:
    """Check that a class is of its kind, frozen and documented, with every option."""
    if not issubclass(cls, base):
        fail(cls, f"is not a subclass of tdpo.{base.__name__}")
    if not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        fail(cls, "is not a frozen dataclass: put @dataclass(frozen=True) before it")
    # A dataclass without a docstring is given its signature for one.
    if not (cls.__doc__ or "").strip() or (cls.__doc__ or "").startswith(f"{cls.__name__}("):
        fail(cls, "has no docstring, which `tdpo plugins describe` shows")
    if not cls.formula:
        fail(cls, "has no `formula`, which `tdpo plugins describe` shows")
    for field in fields(cls):
        if not field.metadata.get("help"):
            fail(cls, f"the option {field.name} has no help: declare it with tdpo.hyperparameter")


def options_are_checked(one: Any, added: Mapping[str, int]) -> None:
    """Check that every option refuses what it declares out of range."""
    for field in fields(one):
        bounds, choices = field.metadata.get("range"), field.metadata.get("choices")
        outside: list[Any] = []
        if bounds is not None:
            outside += [end + d for end, d in ((bounds.ge, -1), (bounds.le, 1)) if end is not None]
            outside += [end for end in (bounds.gt, bounds.lt) if end is not None]
        if choices is not None:
            outside.append("no such choice")
        for value in outside:
            try:
                replace(one, **{field.name: value})
            except TdpoError:
                continue
            fail(
                one,
                f"takes {field.name}={value!r}, which it declares out of range: call super().__post_init__()",
            )


def watches_what_is_logged(one: Any, own: Iterable[str]) -> None:
    """Check that ``watch`` names no figure that a run would not log.

    Args:
        one: an objective or a weighting.
        own: names of its own metrics.
    """
    if not isinstance(one.watch, str):
        fail(one, f"`watch` is {type(one.watch).__name__}, not text")
    for name in re.findall(r"``([^`]+)``", one.watch):
        if name not in {*LOGGED, *own} and not name.startswith("loss/"):
            fail(one, f"`watch` names ``{name}``, which no run with it logs")


def draws_by_seed(one: Any, values: Callable[[], Sequence[Tensor]]) -> None:
    """Check that every pass draws the same, of ``draw_seed``, and not of what torch has drawn before.

    Args:
        one: an objective or a weighting.
        values: what it gives for a batch.
    """
    found, moved = [], False
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(values())
            moved = moved or not torch.equal(before, torch.get_rng_state())
    if moved or not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        fail(
            one,
            "draws from torch's random state, so that another pass of a pair gives something else: draw with "
            "side.uniform, and name draw_seed in `needs`",
        )


def copies(one: Any) -> Iterator[tuple[str, Any]]:
    """How it was copied, and the copy.

    Raises:
        ConformanceError: it cannot be.
    """
    for what, make in (
        ("pickling", lambda: pickle.loads(pickle.dumps(one))),
        ("a deep copy", lambda: copy.deepcopy(one)),
    ):
        try:
            other = make()
        except Exception as error:
            raise ConformanceError(f"{type(one).__name__}: does not survive {what}: {error}") from error
        yield what, other
