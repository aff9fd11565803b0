"""Conditions on figures, such as ``rewards/accuracies>=0.6``: what a check of a model asks."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

_FORM = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*(\S+)\s*")
_TESTS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_ENDS = ("low", "high")


@dataclass(frozen=True)
class Condition:
    """What a figure, or an end of its interval, must be."""

    text: str
    """As it was given."""
    figure: str
    part: str
    """``value``, ``low`` or ``high``."""
    relation: str
    bound: float

    def check(self, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Whether it holds of estimates as plain values; a figure that is not there does not hold."""
        value = figures.get(self.figure, {}).get(self.part)
        # Every comparison with NaN is false.
        passed = value is not None and bool(_TESTS[self.relation](value, self.bound))
        return {"condition": self.text, "value": value, "passed": passed}


def parse_conditions(given: Sequence[str], *, intervals: bool) -> list[Condition]:
    """The values of ``--require``.

    Args:
        given: as they were typed.
        intervals: whether there will be any.

    Raises:
        ConfigError: one that is no condition.
    """
    found = []
    for text in given:
        match = _FORM.fullmatch(text)
        try:
            name, relation, bound = match.groups()  # type: ignore[union-attr]
            limit = float(bound)
        except (AttributeError, ValueError):
            raise ConfigError(
                f"--require {text}: expected FIGURE>=NUMBER, or with <=, > or <, such as "
                "'rewards/accuracies>=0.6'"
            ) from None
        figure, _, part = name.rpartition(".")
        if part not in _ENDS:
            figure, part = name, "value"
        elif not intervals:
            raise ConfigError(f"--require {text}: there are no intervals with --bootstrap 0; leave that out")
        found.append(Condition(text, figure, part, relation, limit))
    return found
