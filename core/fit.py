"""Stage two: train a policy from a cache, with only the policy in memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..cache.reader import CacheReader, open_cache
from .config import FitConfig, fit_config
from .errors import CacheError, ConfigError, ModelError
from .models import (
    ModelSource,
    disable_dropout,
    find_model,
    first_difference,
    load_model,
    load_tokenizer,
    tokenizer_identity,
)
from .options import coerce, nearest, scalar_type
from .quiet import quiet_libraries
from .registry import objective as make_objective
from .runs import last_checkpoint, prepare_output

if TYPE_CHECKING:
    from .objective import Objective

# What the cache must hold for each statistic that an objective may need; None: the policy's forward gives it.
_FROM_CACHE: dict[str, str | None] = {
    "forward_kl": "dist",
    "ref_entropy": "ref_entropy",
    "entropy": None,
    "log_collision": None,
}


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
        options: any other field of :class:`~tdpo.core.config.FitConfig`, such as ``model``, ``output``,
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
    check_needs(config, objective, reader)
    evaluation = _open_evaluation(config, reader)
    policy = _find_policy(config, reader)
    tokenizer = load_tokenizer(policy, option="--model")
    check_policy(policy, tokenizer, reader)
    arguments = training_arguments(config, evaluation is not None)
    prepare_output(Path(config.output_dir), config)
    with quiet_libraries():
        model = load_model(policy, dtype=config.dtype, attention=config.attention)
        return _train(config, objective, reader, evaluation, model, tokenizer, arguments, quiet)


def _train(
    config: FitConfig,
    objective: "Objective",
    reader: CacheReader,
    evaluation: CacheReader | None,
    model: Any,
    tokenizer: Any,
    arguments: Any,
    quiet: bool,
) -> FitResult:
    from transformers import PrinterCallback, ProgressCallback

    from .training.card import write_card
    from .training.data import CachedPairs
    from .training.log import ConsoleLog, MetricsFile
    from .training.trainer import PreferenceTrainer

    disable_dropout(model)
    output = Path(config.output_dir)
    checkpoint = last_checkpoint(output) if config.resume else None
    console = ConsoleLog(quiet=quiet)
    trainer = PreferenceTrainer(
        model,
        objective,
        CachedPairs(reader),
        CachedPairs(evaluation) if evaluation is not None else None,
        estimator=config.kl_estimator,
        check_start=not config.other_start and checkpoint is None,
        args=arguments,
        processing_class=tokenizer,
        callbacks=[MetricsFile(output), console],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
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


def check_needs(config: FitConfig, objective: "Objective", reader: CacheReader) -> None:
    """Compare what the objective needs with what the cache holds, before any model is opened.

    Raises:
        CacheError: something is missing; says how to build it.
        ConfigError: a statistic that no cache can hold yet.
    """
    for name in sorted(objective.needs):
        if name not in _FROM_CACHE:
            raise ConfigError(
                f"--plugin {config.plugin} needs the statistic {name!r}, which this version of tdpo does not "
                f"compute{nearest(name, _FROM_CACHE)}"
            )
        column = _FROM_CACHE[name]
        if column is not None and column not in reader.statistics:
            raise CacheError(
                f"--cache {config.cache} holds no {_WORDS[column]}, which --plugin {config.plugin} needs; "
                "build one that does: tdpo cache build --ref MODEL --head 8 --tail 8 --out DIR"
            )


_WORDS = {"dist": "sample of the reference's distributions", "ref_entropy": "entropies of the reference"}


def _open_evaluation(config: FitConfig, reader: CacheReader) -> CacheReader | None:
    if config.eval_cache is None:
        return None
    evaluation = open_cache(config.eval_cache)
    for part in ("reference", "tokenizer", "statistics"):
        ours, theirs = reader.identity.get(part), evaluation.identity.get(part)
        if ours != theirs:
            keys = [
                k for k in {**(ours or {}), **(theirs or {})} if (ours or {}).get(k) != (theirs or {}).get(k)
            ]
            raise CacheError(
                f"--eval-cache {config.eval_cache} was built otherwise than --cache {config.cache} ({part}: "
                f"{', '.join(keys)} differ); build both with the same reference and options"
            )
    return evaluation


def _find_policy(config: FitConfig, reader: CacheReader) -> ModelSource:
    """The model to start from: the one given, or the cache's reference, also beside the cache's folder."""
    if config.model is not None:
        return find_model(config.model, option="--model")
    name = str(reader.manifest.provenance.get("reference"))
    beside = Path(config.cache).resolve().parent / name
    if not Path(name).exists() and beside.is_dir():
        name = str(beside)
    try:
        return find_model(name, reader.identity["reference"].get("commit"), option="--model")
    except ModelError as error:
        raise ModelError(
            f"the reference that {config.cache} was built from, {name}, cannot be opened to start the policy "
            f"from; give its place with --model ({error})"
        ) from error


def check_policy(policy: ModelSource, tokenizer: Any, reader: CacheReader) -> None:
    """Refuse a policy whose tokenizer or vocabulary is not the cache's.

    Raises:
        ModelError: says where they differ.
    """
    cached = reader.identity["tokenizer"]
    ours = tokenizer_identity(tokenizer)
    if ours["vocabulary_sha256"] != cached["vocabulary_sha256"]:
        where = _where_tokenizers_differ(tokenizer, reader)
        sizes = f"{cached['vocabulary_size']} tokens there, {ours['vocabulary_size']} here"
        raise ModelError(
            f"--model {policy.name}: its tokenizer is not the one the cache was built with "
            f"({where or sizes}); token ids would mean other words: use a policy with the cache's tokenizer, "
            "or build a cache for this one"
        )
    if ours["rules_sha256"] != cached["rules_sha256"]:
        raise ModelError(
            f"--model {policy.name}: its tokenizer has the cache's vocabulary but splits text otherwise "
            "(merges, normaliser or special-token rules differ); use the cache's tokenizer, or build a cache "
            "for this one"
        )
    vocab_size = policy.config.get_text_config().vocab_size
    if vocab_size != reader.vocab_size:
        raise ModelError(
            f"--model {policy.name}: has {vocab_size} logits where the cache's reference has "
            f"{reader.vocab_size}; resize its embeddings or build a cache for this model"
        )


def _where_tokenizers_differ(tokenizer: Any, reader: CacheReader) -> str | None:
    """The first differing token, where the reference's own tokenizer is still at hand."""
    try:
        source = find_model(str(reader.manifest.provenance.get("reference")), option="--model")
        return first_difference(load_tokenizer(source, option="--model"), tokenizer)
    except ModelError:
        return None


def training_arguments(config: FitConfig, evaluate: bool) -> Any:
    """transformers.TrainingArguments of ``config``; its ``training`` fields win over ours.

    Raises:
        ConfigError: an unknown field, or a value that transformers refuses.
    """
    from dataclasses import fields

    import torch
    from transformers import TrainingArguments

    known = {field.name for field in fields(TrainingArguments) if field.init}
    annotations = get_type_hints(TrainingArguments)
    given = {}
    for name, value in config.training.items():
        if name not in known:
            raise ConfigError(f"training.{name} is not a field of TrainingArguments{_close(name, known)}")
        # Values from --set are text, and YAML takes 1e-5 for text too.
        plain = isinstance(value, str) and scalar_type(annotations[name])[0] in (int, float, bool)
        given[name] = coerce(value, annotations[name], f"training.{name}") if plain else value
    values: dict[str, Any] = {
        "output_dir": config.output_dir,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "optim": config.optimizer,
        "bf16": config.bf16,
        "activation_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "save_strategy": "steps" if config.save_steps else "epoch",
        "save_steps": config.save_steps or 500,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": True,
        "report_to": "none",
        "label_names": [],
    }
    if evaluate:
        values |= {
            "eval_strategy": "steps" if config.eval_steps else "epoch",
            "eval_steps": config.eval_steps,
            "eval_on_start": True,
            "prediction_loss_only": True,
        }
    try:
        return TrainingArguments(**{**values, **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training options: {' '.join(str(error).split())}") from error


def _close(name: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=2)
    return "; did you mean " + " or ".join(repr(n) for n in near) + "?" if near else ""


def _last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for event in history:
        if "loss" in event or "eval_loss" in event:
            figures.update({k: v for k, v in event.items() if isinstance(v, int | float)})
    return {k: v for k, v in figures.items() if k not in ("step", "epoch")}
