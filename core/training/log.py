"""Where a run's figures go: ``metrics.jsonl`` beside the model, and the console."""

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..progress import Progress
from ..runs.lines import METRICS_FILE, StepLines


class MetricsFile(TrainerCallback):
    """Appends every logged event to ``metrics.jsonl``: one JSON object with ``step`` a line."""

    def __init__(self, folder: Path):
        self.lines = StepLines(folder / METRICS_FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what a cut-off run logged after the checkpoint that this one goes on from."""
        if state.is_world_process_zero:
            self.lines.cut(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write one event."""
        if state.is_world_process_zero and logs:
            self.lines.append(state.global_step, logs)


class ConsoleLog(TrainerCallback):
    """A progress bar over optimiser steps and a line for every logged event, on stderr."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if state.is_world_process_zero:
            self.progress = Progress("training", state.max_steps, "steps", quiet=self.quiet)
            self.progress.__enter__()
            self.progress.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimiser step is done."""
        if self.progress is not None:
            self.progress.advance(state.global_step - self.progress.done)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Print the event's main figures."""
        if state.is_world_process_zero and logs and (line := summary_line(state.global_step, logs)):
            self.note(line)

    def note(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.quiet:
            return
        if self.progress is not None:
            self.progress.note(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also after an interruption."""
        if self.progress is not None:
            self.progress.__exit__(*sys.exc_info())
            self.progress = None


_COLUMNS = (
    ("loss", "loss", ".4f"),
    ("rewards/accuracies", "accuracy", ".3f"),
    ("rewards/margins", "margin", ".4f"),
    ("kl/chosen", "kl chosen", ".3f"),
    ("kl/rejected", "kl rejected", ".3f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
)


def summary_line(step: int, logs: dict[str, Any]) -> str | None:
    """The main figures of one event in a line; None for what is neither training nor evaluation."""
    # An objective may have a figure of its own whose name ends with loss: that one is longer.
    losses = [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]
    prefix = min(losses, key=len, default="loss").removesuffix("loss")
    if f"{prefix}loss" not in logs:
        return None
    parts = [f"{label} {logs[prefix + key]:{form}}" for key, label, form in _COLUMNS if prefix + key in logs]
    kind = prefix.rstrip("_").replace("_", " ", 1) if prefix else "step"
    return f"{kind:>5} {step:>5}  " + "  ".join(parts)
