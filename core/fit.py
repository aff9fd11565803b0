"""Stage two: train a policy from a cache, with only the policy in memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.reader import CacheReader, open_cache
from .checks import check_model, check_needs, find_policy, open_evaluation, statistics_to_read
from .config.file import fit_config
from .config.fit import FitConfig
from .joining import join_scores
from .models import find_model, load_tokenizer
from .quiet import quiet_libraries
from .registry import objective as make_objective
from .runs import STATE_FILE, is_finished, is_first_process, last_checkpoint, prepare_output

if TYPE_CHECKING:
    from .objective import Objective


@dataclass(frozen=True)
class FitResult:
    """What a finished run left behind."""

    output: Path
    """Folder of the policy; ``AutoModelForCausalLM.from_pretrained`` opens it."""
    metrics: dict[str, float]
    """The last logged training and evaluation figures."""
    steps: int
    """Optimiser steps taken."""


def fit(
    plugin: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **options: Any,
) -> FitResult:
    """Train a policy from a cache; what ``tdpo fit`` does.

    Args:
        plugin: the objective's name.
        cache: the cache's folder.
        config: a ``tdpo.yaml`` whose ``fit`` and ``training`` sections hold options that are not given here.
        quiet: print nothing.
        options: any other field of :class:`~tdpo.core.config.fit.FitConfig`, such as ``model``, ``output``,
            ``set={"beta": 0.1}`` or ``training={"weight_decay": 0.01}``.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = {
        **options,
        **{name: os.fspath(v) for name, v in (("plugin", plugin), ("cache", cache)) if v is not None},
    }
    return run_fit(fit_config(given, config), quiet=quiet)


def run_fit(config: FitConfig, *, quiet: bool = False) -> FitResult:
    """Run the fit that ``config`` describes. Raises as :func:`fit`."""
    reader = open_cache(config.cache)
    objective = make_objective(config.plugin, **config.set)
    reader, evaluation = join_scores(config, objective, reader, open_evaluation(config, reader))
    check_needs(config, objective, reader)
    policy = find_policy(config, reader)
    tokenizer = load_tokenizer(policy, option="--model")
    check_model(policy, tokenizer, reader, option="--model")

    from .training.arguments import training_arguments

    arguments = training_arguments(config, evaluation is not None)
    if is_first_process():
        prepare_output(Path(config.output_dir), config)
    checkpoint = last_checkpoint(Path(config.output_dir)) if config.resume else None
    if checkpoint is not None and is_finished(checkpoint):
        policy = find_model(str(checkpoint), option="--output")
    from .training.policy import open_policy

    with quiet_libraries():
        model = open_policy(config, policy)
        return _train(config, objective, reader, evaluation, model, tokenizer, arguments, checkpoint, quiet)


def _train(
    config: FitConfig,
    objective: "Objective",
    reader: CacheReader,
    evaluation: CacheReader | None,
    model: Any,
    tokenizer: Any,
    arguments: Any,
    checkpoint: Path | None,
    quiet: bool,
) -> FitResult:
    from transformers import PrinterCallback, ProgressCallback, TrainerState

    from .training.card import write_card
    from .training.data import CachedPairs
    from .training.log import ConsoleLog, MetricsFile
    from .training.trainer import PreferenceTrainer

    output = Path(config.output_dir)
    console = ConsoleLog(quiet=quiet)
    trainer = PreferenceTrainer(
        model,
        objective,
        CachedPairs(reader, statistics_to_read(objective, reader)),
        CachedPairs(evaluation, statistics_to_read(objective, reader)) if evaluation is not None else None,
        estimator=config.kl_estimator,
        check_start=not config.other_start and checkpoint is None,
        args=arguments,
        processing_class=tokenizer,
        callbacks=[MetricsFile(output), console],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if checkpoint is not None and is_finished(checkpoint):
        # Trainer would take one step more; all that can be missing is the model in the run's own folder.
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    else:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            console.close()
    trainer.save_model(str(output))
    metrics = _last_figures(trainer.state.log_history)
    if trainer.is_world_process_zero():
        # A pickle that says what tdpo.yaml says.
        (output / "training_args.bin").unlink(missing_ok=True)
        write_card(output, config, objective, reader.manifest, metrics)
    return FitResult(output, metrics, trainer.state.global_step)


def _last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for event in history:
        if "loss" in event or "eval_loss" in event:
            figures.update({k: v for k, v in event.items() if isinstance(v, int | float)})
    return {k: v for k, v in figures.items() if k not in ("step", "epoch")}
