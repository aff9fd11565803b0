"""Experiment trackers: how transformers reports to them, and what they are told about a run."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from ...cache.manifest import identity_hash
from ..config.fit import FitConfig
from ..config.tracking import trackers
from ..errors import ConfigError
from ..objective import Objective

# Folder of the event files, in a run's own.
TENSORBOARD_FOLDER = "tensorboard"


def tracker_callbacks(config: FitConfig, checkpoint: Path | None) -> list[TrainerCallback]:
    """The callbacks that report to the trackers of ``config``.

    Args:
        config: the fit's options.
        checkpoint: that the run goes on from, or None.

    Raises:
        ConfigError: a tracker's package is there but does not load.
    """
    step = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint is not None else 0
    callbacks = []
    for name in trackers(config):
        try:
            callbacks.append(_CALLBACKS[name](config, step))
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"--report-to {name}: its package does not load: {' '.join(str(error).split())}; "
                f"pip install --upgrade {name}"
            ) from error
    return callbacks


def run_description(
    config: FitConfig, objective: Objective, reader: Any, evaluations: Mapping[str, Any]
) -> dict[str, Any]:
    """What trackers file a run under, beside transformers' own arguments; plain values.

    Args:
        config: the fit's options.
        objective: with its hyperparameters.
        reader: the cache.
        evaluations: those to evaluate on, by name.
    """
    return {
        "plugin": config.objective_name,
        "objective": asdict(objective),
        "cache_identity": identity_hash(reader.identity),
        "eval_cache_identities": {
            name or "eval": identity_hash(r.identity) for name, r in evaluations.items()
        },
        "options": asdict(config),
    }


class _TensorBoard(TensorBoardCallback):
    """transformers' own, into one folder of the run, also when it is resumed."""

    def __init__(self, folder: Path, step: int):
        super().__init__()
        self.logging_dir = str(folder)
        self.step = step

    def _init_summary_writer(self, args: Any) -> None:
        # What a cut-off run logged after its checkpoint is hidden.
        purge = self.step + 1 if self.step else None
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=purge)


class _Wandb(WandbCallback):
    """transformers' own, which says in a line what is wrong."""

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Start the run, in the project that WANDB_PROJECT names, or else in that of transformers' arguments.

        Raises:
            ConfigError: wandb refuses, most often because nobody is logged in.
        """
        try:
            if state.is_world_process_zero and self._wandb.run is None:
                project = os.environ.get("WANDB_PROJECT", args.project)
                self._wandb.init(project=project, name=args.run_name)
            super().setup(args, state, model, **kwargs)
        except self._wandb.errors.Error as error:
            raise ConfigError(
                f"--report-to wandb: {' '.join(str(error).split())} Or set WANDB_MODE=offline"
            ) from error


_CALLBACKS: dict[str, Callable[[FitConfig, int], TrainerCallback]] = {
    "tensorboard": lambda config, step: _TensorBoard(Path(config.output_dir) / TENSORBOARD_FOLDER, step),
    "wandb": lambda config, step: _Wandb(),
    "trackio": lambda config, step: TrackioCallback(),
}
