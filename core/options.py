"""Options declared once: a dataclass field with a default, a help text and a valid range.

The command line's flags, the keys of ``tdpo.yaml``, ``--set``, ``tdpo plugins describe`` and the keyword
arguments of the Python functions all come from such fields, and all are checked here.
"""

import dataclasses
import datetime
import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers an option may take; ``gt``/``lt`` exclude their end, ``ge``/``le`` include it."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        low, high = (self.gt if self.ge is None else self.ge), (self.lt if self.le is None else self.le)
        if low is None and high is None:
            return "any number"
        if high is None:
            return f"{'>=' if self.ge is not None else '>'} {low:g}"
        if low is None:
            return f"{'<=' if self.le is not None else '<'} {high:g}"
        return f"{'[' if self.ge is not None else '('}{low:g}, {high:g}{']' if self.le is not None else ')'}"


def option(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Iterable[str] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is a checked option.

    Args:
        default: the value when nothing is given; ``dataclasses.MISSING`` where one must be.
        help: one sentence, shown by ``--help`` and ``plugins describe``.
        gt, ge, lt, le: bounds of a number.
        choices: the words a string may be.
        metavar: how the value is named in ``--help``.
    """
    bounds = Range(gt, ge, lt, le)
    metadata = {
        "help": help,
        "range": bounds if bounds != Range() else None,
        "choices": tuple(choices) if choices is not None else None,
        "metavar": metavar,
    }
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


hyperparameter = option


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or, where nothing is near, the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return f"; known: {', '.join(known)}" if known else ""


def field_types(cls: type) -> dict[str, Any]:
    """Option name -> annotated type, for the dataclass ``cls``."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def scalar_type(annotation: Any) -> tuple[Any, bool]:
    """``(T, True)`` for ``T | None``, ``(T, False)`` otherwise."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0], len(inner) < len(typing.get_args(annotation))
    return annotation, False


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """``value`` (often a string, or YAML's idea of ``1e-5``) as the annotated type.

    Raises:
        ConfigError: it cannot be read as that type; names ``where``.
    """
    kind, optional = scalar_type(annotation)
    if value is None or (optional and isinstance(value, str) and value.lower() in ("none", "null")):
        if optional:
            return None
        raise ConfigError(f"{where}: no value given; expected {_kind_name(kind)}")
    origin = typing.get_origin(kind) or kind
    if origin is list:
        items = value if isinstance(value, list | tuple) else [value]
        return [coerce(item, typing.get_args(kind)[0], where) for item in items]
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected names with values, not {value!r}")
        return dict(value)
    try:
        if kind is bool:
            return _as_bool(value)
        if kind is int:
            return _as_int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str | int | float | os.PathLike | datetime.date):
            return str(value)
        if kind is Any:
            return value
    except (TypeError, ValueError):
        if str in typing.get_args(annotation) and isinstance(value, str):
            return value  # a word in a number's place, such as "auto"; which ones, its choices say
    raise ConfigError(f"{where}: expected {_kind_name(kind)}, not {value!r}")


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(value)


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"one or several of: {_kind_name(typing.get_args(kind)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))


def check(instance: Any, where: str = "") -> None:
    """Check every option of a dataclass instance against its range and choices.

    Raises:
        ConfigError: names the option (prefixed with ``where``), its value and what is allowed.
    """
    for field in dataclasses.fields(instance):
        value, name = getattr(instance, field.name), f"{where}{field.name}"
        bounds, choices = field.metadata.get("range"), field.metadata.get("choices")
        if value is None:
            continue
        # An option may be a number or a word, such as "auto": then it has both.
        is_word = isinstance(value, str)
        # Comparisons with NaN are all false, so a NaN is outside every range that has a bound.
        if bounds is not None and not is_word and value not in bounds:
            raise ConfigError(f"{name}={value!r} is out of range: it must be {_phrase(bounds)}")
        if choices is not None and (is_word or bounds is None) and value not in choices:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(choices)}{_near(value, choices)}")


def _phrase(bounds: Range) -> str:
    text = str(bounds)
    return f"in {text}" if text[0] in "[(" else text


def _near(value: Any, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def construct(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass ``cls`` from named values, each coerced and checked.

    Args:
        cls: a dataclass of options.
        values: option name -> value; strings are read as the annotated type.
        where: put before an option's name in messages, such as ``"tdpo.yaml: fit."``.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value that does not fit.
    """
    annotations = field_types(cls)
    clean = {}
    for name, value in values.items():
        if name not in annotations:
            raise ConfigError(f"{where}{name} is not an option{nearest(name, annotations)}")
        clean[name] = coerce(value, annotations[name], f"{where}{name}")
    missing = [f.name for f in required_fields(cls) if f.name not in clean]
    if missing:
        raise ConfigError(f"{where}{missing[0]} must be given")
    instance = cls(**clean)
    check(instance, where)
    return instance


def required_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields without a default."""
    missing = dataclasses.MISSING
    return [f for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]
