"""How long the training steps took."""

import time
from typing import Any

from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Seconds spent in training steps, data loading included, evaluation and saving left out."""

    def __init__(self) -> None:
        self.seconds, self._mark = 0.0, time.monotonic()

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimiser step is done."""
        self.seconds += time.monotonic() - self._mark
        self._mark = time.monotonic()

    def _restart(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()

    on_train_begin = on_epoch_begin = on_evaluate = on_save = _restart
