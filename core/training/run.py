"""A run: its folder prepared, the policy opened, trained, saved and described."""

import sys
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerState

from ...cache.manifest import plain_json
from ..checks import check_batch_level, statistics_to_read
from ..config.fit import FitConfig
from ..fit_request import FitRequest
from ..objective import Objective
from ..runs.checkpoints import STATE_FILE, is_finished, kept_checkpoint, last_checkpoint
from ..runs.figures import kept_figures
from ..runs.output import is_first_process, prepare_output
from ..runs.record import record_end, run_record
from .arguments import training_arguments
from .card import write_card
from .data import CachedPairs
from .evaluation import evaluation_callbacks, evaluation_data
from .layout import check_layout, choose_batching
from .log import ConsoleLog, MetricsFile
from .policy import open_policy, save_policy
from .precision import check_precision, rounding_notice
from .provenance import now, run_provenance
from .rehearsal import rehearse
from .result import FitResult
from .samples import Samples, check_samples
from .sharding import Sharding, ShardingCheck, keep_scores_exact
from .stopping import Stopping
from .trackers import run_description, tracker_callbacks
from .trainer import PreferenceTrainer


def run(request: FitRequest, sharding: Sharding, *, quiet: bool = False) -> FitResult:
    """Train what ``request`` asks for, in this process and those that a launcher started beside it.

    Raises:
        TdpoError: an option that cannot be had here, a folder that cannot be used, a step that failed.
    """
    config = request.config
    arguments = _arguments(request, sharding)
    checkpoint = _prepare_folder(request, arguments, quiet=quiet)
    finished = checkpoint if checkpoint is not None and is_finished(checkpoint) else None
    # A resumed run has its figures of that step already.
    arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
    model = open_policy(config, request.policy, None if finished is None else kept_checkpoint(finished))
    console, stopping = ConsoleLog(quiet=quiet), Stopping()
    trainer = make_trainer(
        config,
        request.objective,
        request.reader,
        request.evaluations,
        model,
        args=arguments,
        check_start=not config.other_start and checkpoint is None,
        processing_class=request.tokenizer,
        callbacks=[ShardingCheck(sharding), *_callbacks(request, console, checkpoint), stopping],
    )
    for note in (trainer.layout_note, rounding_notice(model, arguments)):
        if note is not None and trainer.is_world_process_zero():
            console.note(note)
    if finished is not None:
        # Trainer would take one step more; all that can be missing is the model in the run's own folder.
        trainer.state = TrainerState.load_from_json(str(finished / STATE_FILE))
    else:
        try:
            with stopping.listening(), trainer.guard.telling_of_memory():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            console.close()
        stopping.raise_if_stopped(trainer)
    return _save(request, trainer)


def make_trainer(
    config: FitConfig,
    objective: Objective,
    reader: Any,
    evaluations: dict[str, Any],
    model: Any,
    **kwargs: Any,
) -> PreferenceTrainer:
    """The trainer of a fit, ready to train ``model`` from ``reader``; ``kwargs`` go to PreferenceTrainer."""
    statistics = statistics_to_read(objective, reader)
    trainer = PreferenceTrainer(
        model,
        objective,
        CachedPairs(reader, statistics),
        evaluation_data(evaluations, statistics),
        estimator=config.kl_estimator,
        dropout=config.dropout,
        **kwargs,
    )
    keep_scores_exact(trainer)
    # The trainer has put the model where it is trained, which is where its attention is tried.
    trainer.data_collator, trainer.layout_note = choose_batching(
        config, trainer.model, objective, trainer.args.device.type
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _arguments(request: FitRequest, sharding: Sharding) -> Any:
    """transformers.TrainingArguments, once what needs no weights has been tried."""
    config = request.config
    check_samples(config, sharding)
    check_precision(config)
    arguments = training_arguments(config, bool(request.evaluations))
    check_batch_level(config, request.objective, arguments)
    arguments.tdpo = run_description(config, request.objective, request.reader, request.evaluations)
    rehearse(config, request.policy, arguments, sharded=sharding.fsdp or sharding.deepspeed)
    check_layout(config, request.policy.config)
    return arguments


def _prepare_folder(request: FitRequest, arguments: Any, *, quiet: bool) -> Path | None:
    """Make the run's folder ready; the checkpoint to go on from, where there is one."""
    config = request.config
    cut_short: list[Path] = []
    if is_first_process():
        record = run_record(request.objective, request.reader, request.evaluations, request.policy, arguments)
        record["provenance"] = plain_json(run_provenance(request, arguments))
        cut_short = prepare_output(Path(config.output_dir), config, record)
    checkpoint = last_checkpoint(config.output_dir) if config.resume else None
    if cut_short and not quiet:
        start = checkpoint or "the start"
        print(f"{cut_short[-1]} was not written to its end; going on from {start}", file=sys.stderr)
    return checkpoint


def _callbacks(request: FitRequest, console: ConsoleLog, checkpoint: Path | None) -> list[Any]:
    config = request.config
    callbacks = [MetricsFile(Path(config.output_dir)), console, *evaluation_callbacks(config)]
    callbacks += tracker_callbacks(config, checkpoint)
    if config.samples:
        first = next(iter(request.evaluations.values()))
        callbacks.append(Samples(config, first, request.tokenizer, console))
    return callbacks


def _save(request: FitRequest, trainer: PreferenceTrainer) -> FitResult:
    config, output = request.config, Path(request.config.output_dir)
    save_policy(trainer, config)
    best = trainer.state.best_global_step if config.best is not None else None
    metrics = kept_figures(trainer.state.log_history, best)
    if trainer.is_world_process_zero():
        # A pickle that says what tdpo.yaml says.
        (output / "training_args.bin").unlink(missing_ok=True)
        record_end(output, steps=trainer.state.global_step, best_step=best, at=now())
        write_card(output)
    return FitResult(output, metrics, trainer.state.global_step, best)
