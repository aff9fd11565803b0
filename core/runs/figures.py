"""The figures of a run: those of the policy that it kept, and which way is better."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_SMALLER_IS_BETTER = re.compile(r"(.*[/_])?loss|kl/.*")
_LARGER_IS_BETTER = re.compile(r".*(accuracy|accuracies|margins?)|(rewards|logps)/chosen")


def larger_is_better(figure: str) -> bool | None:
    """Which way a figure of training or evaluation, named without its cache, improves; None if unknown."""
    if _SMALLER_IS_BETTER.fullmatch(figure):
        return False
    return True if _LARGER_IS_BETTER.fullmatch(figure) else None


def kept_figures(events: Iterable[Mapping[str, Any]], step: int | None = None) -> dict[str, float]:
    """The last of each logged figure of training; those of the evaluations as of ``step``, where it is given.

    Args:
        events: what was logged, in its order, each with ``step``.
        step: whose policy was kept, where that is not the last.
    """
    figures: dict[str, float] = {}
    for event in events:
        evaluated = any(name.startswith("eval_") for name in event)
        if "loss" in event or (evaluated and step in (None, event["step"])):
            figures.update({k: v for k, v in event.items() if isinstance(v, int | float)})
    return {k: v for k, v in figures.items() if k not in ("step", "epoch")}
