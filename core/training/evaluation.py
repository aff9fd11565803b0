"""Evaluating while training: on what, when, and which checkpoint comes out of it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, TrainerCallback

from ..config.evaluation import Selection, selection
from ..config.fit import FitConfig
from ..errors import ConfigError
from ..options import nearest
from ..runs.checkpoints import best_checkpoint
from .data import CachedPairs


def evaluation_arguments(config: FitConfig) -> dict[str, Any]:
    """The fields of transformers.TrainingArguments that are about evaluation, for a fit that evaluates.

    With ``--best`` each evaluation saves a checkpoint, and the best of them is loaded at the end.

    Raises:
        ConfigError: the options do not go together.
    """
    best = selection(config)
    steps = config.eval_steps or (config.save_steps if best else None)
    values: dict[str, Any] = {
        "eval_strategy": "steps" if steps else "epoch",
        "eval_steps": steps,
        "eval_on_start": True,
        "prediction_loss_only": True,
    }
    if best is not None:
        values |= {
            "save_strategy": values["eval_strategy"],
            "save_steps": steps or 500,
            "load_best_model_at_end": True,
            "metric_for_best_model": best.figure,
            "greater_is_better": best.larger,
            # A resumed run goes on counting the evaluations without improvement.
            "restore_callback_states_from_checkpoint": True,
        }
    return values


def evaluation_data(
    readers: Mapping[str, Any], statistics: Collection[str]
) -> CachedPairs | dict[str, CachedPairs] | None:
    """The evaluation caches as Trainer takes them: one, several by their names, or None.

    Args:
        readers: the caches, by the names that :func:`~tdpo.core.config.evaluation.eval_caches` gives.
        statistics: what is read of them.
    """
    data = {name: CachedPairs(reader, statistics) for name, reader in readers.items()}
    return data.get("", data or None)


def evaluation_callbacks(config: FitConfig) -> list[TrainerCallback]:
    """What ``--best`` and ``--early-stopping`` add to the trainer."""
    best = selection(config)
    if best is None:
        return []
    callbacks: list[TrainerCallback] = [BestCheckpoint(best, config)]
    if config.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping, config.early_stopping_threshold))
    return callbacks


class EvaluationBatches(Sampler[list[int]]):
    """The rows of one process's evaluation batches: every row of the cache once, in one process.

    Each process has a contiguous share, which differs by a row at most. All have as many batches; one that
    has less rows comes to an empty batch at the end.

    Args:
        rows: of the cache.
        batch_size: rows of a batch at most.
        process: which one this is.
        processes: how many there are.
    """

    def __init__(self, rows: int, batch_size: int, process: int = 0, processes: int = 1):
        self.batch_size = batch_size
        self.rows = range(rows * process // processes, rows * (process + 1) // processes)
        largest = -(-rows // processes)
        self.batches = -(-largest // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            yield list(self.rows[start : start + self.batch_size])


class BestCheckpoint(TrainerCallback):
    """Sees to it that the figure of ``--best`` is there, and that the best checkpoint is found at the end."""

    def __init__(self, best: Selection, config: FitConfig):
        self.best, self.option = best, config.best
        self.output, self.evaluations = Path(config.output_dir), len(config.eval_cache)
        self._seen: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The folder of a resumed run may have been moved since its checkpoints were written."""
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(best_checkpoint(self.output, state.best_global_step))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Refuse a figure that none of the evaluations gives, when all are done for the first time."""
        if len(self._seen) >= self.evaluations:
            return
        self._seen.append(metrics or {})
        known = {name for figures in self._seen for name in figures if name != "epoch"}
        if len(self._seen) == self.evaluations and self.best.figure not in known:
            raise ConfigError(
                f"--best {self.option}: the evaluations give no {self.best.figure}"
                f"{nearest(self.best.figure, known)}"
            )
