"""What objectives and weightings are both checked for."""

import copy
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..errors import TdpoError


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
