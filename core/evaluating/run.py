"""``tdpo eval``: policies scored on cached pairs, their figures with intervals, and their differences."""

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..config.eval import EvalConfig
from ..errors import ConfigError
from ..options import construct, nearest
from ..quiet import quiet_libraries
from .columns import OtherColumns, check_names, open_columns
from .conditions import Condition, parse_conditions
from .figures import FACTS, evaluate_pairs
from .generated import Generating
from .request import Subject, Target, open_subjects
from .scorer import PairScorer, open_policy_for
from .slices import Slicing, check_columns, cut, parse_slices
from .summary import Evaluated, summarise
from .table import Table, chosen_names
from .write import check_out, write_evaluation


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    document: dict[str, Any]
    """The content of ``eval.json``; see docs/evaluation.md."""
    evaluated: list[Evaluated]
    """The figures of single pairs: one table for each policy on each cache."""
    out: Path | None
    """The folder that was written; None where none was."""
    samples: pa.Table | None = None
    """The content of ``samples.parquet``; None where none were drawn."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The checks of ``require`` that did not hold."""
        return [check for check in self.document["checks"] if not check["passed"]]


@dataclass(frozen=True)
class _Asked:
    """The options that name figures and columns, read."""

    config: EvalConfig
    slicings: list[Slicing]
    conditions: list[Condition]
    others: list[OtherColumns]


def evaluate(*run: str | os.PathLike[str], quiet: bool = False, **options: Any) -> Evaluation:
    """Evaluate runs or models on cached pairs; what ``tdpo eval`` does.

    Args:
        run: folders of runs, of models or of adapters, or hub names; several are compared with the first.
        quiet: show no progress.
        options: any other field of :class:`~tdpo.core.config.eval.EvalConfig`, such as ``cache``.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = {"run": [os.fspath(one) for one in run], **options}
    return run_eval(construct(EvalConfig, given), quiet=quiet)


def run_eval(config: EvalConfig, *, quiet: bool = False) -> Evaluation:
    """Run the evaluation that ``config`` describes. Raises as :func:`evaluate`."""
    asked = _Asked(
        config,
        parse_slices(config.slice),
        parse_conditions(config.require, intervals=config.bootstrap > 0),
        open_columns(config.columns, FACTS),
    )
    with quiet_libraries():
        subjects = open_subjects(config)
        out = check_out(config, subjects)
        for each in asked.others:
            for target in (one for subject in subjects for one in subject.targets.values()):
                each.check(target.reader)
        readers = {one.place: one.reader for subject in subjects for one in subject.targets.values()}
        generating = Generating.of(config, readers, quiet=quiet)
        evaluated: list[Evaluated] = []
        for subject in subjects:
            evaluated += _evaluated(asked, subject, generating, quiet)
            # Its scored forward refers to the model: only the collector makes room for the next one.
            gc.collect()
    samples = generating.samples if generating is not None else None
    document = summarise(config, subjects, evaluated, asked.slicings, asked.conditions)
    if out is not None:
        write_evaluation(out, document, evaluated, samples)
    return Evaluation(document, evaluated, out, samples)


def _evaluated(
    asked: _Asked, subject: Subject, generating: Generating | None, quiet: bool
) -> Iterator[Evaluated]:
    """A policy on each of its caches; its weights are in memory meanwhile."""
    config = asked.config
    first = next(iter(subject.targets.values())).reader
    option = "RUN" if config.model is None else "--model"
    model, tokenizer = open_policy_for(first, subject.policy, option=option, dtype=config.dtype)
    for name, target in subject.targets.items():
        scorer = PairScorer(
            model,
            target.reader,
            needs=target.objective.needs,
            estimator=subject.config.kl_estimator,
            batch_tokens=config.batch_tokens,
            whole=target.objective.batch_level,
        )
        rows = _rows(target.reader, config)
        # A few pairs say which figures there are, before all of them take their time.
        of_samples = generating.names(target.place) if generating is not None else []
        _check_names(asked, _table(asked, scorer, subject, target, rows[:2], quiet=True), of_samples)
        if generating is not None:
            generating.try_reward(target.place, tokenizer)
        table = _table(asked, scorer, subject, target, rows, quiet=quiet)
        if generating is None:
            yield Evaluated(subject, name, target, table)
            continue
        samples = generating.evaluate(subject.name, name, target.place, model, tokenizer)
        yield Evaluated(subject, name, target, table, samples, generating.grounds[target.place].notes)


def _table(
    asked: _Asked, scorer: PairScorer, subject: Subject, target: Target, rows: Sequence[int], *, quiet: bool
) -> Table:
    table = evaluate_pairs(
        scorer,
        target.objective,
        rows,
        name=subject.name,
        bins=asked.config.calibration_bins,
        batch_size=subject.config.batch_size if target.objective.batch_level else None,
        quiet=quiet,
    )
    found: dict[str, Any] = {}
    for one in asked.others:
        found |= one.of(table)
    return table.with_columns(found)


def _check_names(asked: _Asked, table: Table, of_samples: Sequence[str]) -> None:
    """Refuse figures and columns that there are not. ``of_samples`` are the figures of samples.

    Raises:
        ConfigError: names the nearest.
    """
    known = [*table.names, *of_samples]
    for pattern in asked.config.metric:
        if not chosen_names([pattern], known):
            raise ConfigError(f"--metric {pattern}: there is no such figure{nearest(pattern, known)}")
    for condition in asked.conditions:
        if condition.figure not in known:
            raise ConfigError(
                f"--require {condition.text}: there is no figure {condition.figure!r}"
                f"{nearest(condition.figure, known)}"
            )
    check_names(asked.others, [*FACTS, *table.figures])
    check_columns(asked.slicings, table)
    for slicing in asked.slicings:
        cut(table, slicing)


def _rows(reader: Any, config: EvalConfig) -> list[int]:
    """The rows that are evaluated: all, or as many as ``--limit`` says.

    Which, the seed and a pair's id decide: of several caches, the same pairs are drawn.
    """
    if config.limit is None or config.limit >= len(reader):
        return list(range(len(reader)))
    salt = str(config.seed).encode()
    drawn = [
        (blake2b(one.pair.pair_id.encode(), digest_size=8, key=salt).digest(), row)
        for row, one in enumerate(reader.iter(statistics={"ref_logp"}))
    ]
    return sorted(row for _, row in sorted(drawn)[: config.limit])
