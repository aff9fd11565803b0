"""What a finished run leaves behind."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FitResult:
    """What a finished run left behind."""

    output: Path
    """Folder of the policy; ``AutoModelForCausalLM.from_pretrained`` opens it."""
    metrics: dict[str, float]
    """The last logged training and evaluation figures."""
    steps: int
    """Optimiser steps taken."""
    best_step: int | None = None
    """Where a best checkpoint was asked for: the step that the policy and the evaluation's figures are of."""
