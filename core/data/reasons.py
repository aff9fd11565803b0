"""Why a row of the data gives no pair: the fixed set of reasons that are counted and reported."""

from dataclasses import dataclass
from typing import Final

MISSING_PROMPT: Final = "missing prompt"
EMPTY_PROMPT: Final = "empty prompt"
NOT_TEXT: Final = "not text"
NO_COMMON_PROMPT: Final = "no common prompt"
NO_ASSISTANT_TURN: Final = "no assistant turn"
TEMPLATE_REFUSED: Final = "refused by the chat template"
IDENTICAL_SIDES: Final = "identical sides"
OVER_LENGTH: Final = "over length"

REASONS: Final = (
    MISSING_PROMPT,
    "missing chosen",
    "missing rejected",
    EMPTY_PROMPT,
    "empty chosen",
    "empty rejected",
    NOT_TEXT,
    NO_COMMON_PROMPT,
    NO_ASSISTANT_TURN,
    TEMPLATE_REFUSED,
    IDENTICAL_SIDES,
    OVER_LENGTH,
)


@dataclass(frozen=True)
class Skip:
    """A row that is left out: one of :data:`REASONS` and, where it helps, what was said about it."""

    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason {self.reason!r}")
