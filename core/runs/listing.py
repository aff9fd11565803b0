"""The runs of a folder, each summed up: what it is, how far it came, and its figures. Imports no torch."""

import datetime
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...cache.manifest import identity_hash
from ..config.evaluation import eval_caches, figure_prefix
from ..config.file import CONFIG_FILE
from ..config.fit import FitConfig
from ..errors import ConfigError
from ..options import nearest
from .checkpoints import STATE_FILE, checkpoint_step, checkpoints
from .figures import kept_figures, larger_is_better
from .folder import DEPTH, RunFolder, run_folders

ORDERS = ("name", "made", "size", "steps")
"""What runs can be sorted by besides a figure."""


@dataclass(frozen=True)
class Best:
    """The best value that a figure had, and the step."""

    value: float
    step: int
    larger: bool
    """Whether a larger value is the better one."""


@dataclass(frozen=True)
class RunSummary:
    """A run in a few words."""

    name: str
    """Its folder, as seen from the one that was looked through."""
    path: str
    state: Literal["finished", "unfinished", "unreadable"]
    """``unfinished``: it goes on still, or was stopped; ``unreadable``: see ``trouble``."""
    step: int = 0
    """How far it came: the last step that was logged or saved."""
    steps: int | None = None
    """How far it was to go; None where nothing tells."""
    objective: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the objective and its weightings: those that are not their defaults."""
    cache: str | None = None
    """SHA-256 of the identity of the cache it was trained from; None where that is not recorded."""
    figures: dict[str, float] = field(default_factory=dict)
    """Every logged figure: the last, those of the evaluations as of the step whose policy was kept."""
    best: dict[str, Best] = field(default_factory=dict)
    """The best value of the figures of which it is known which way is better."""
    prefix: str = ""
    """Of the figures of its first evaluation cache; empty where it had none."""
    checkpoints: tuple[int, ...] = ()
    """Steps of those that are kept."""
    made: str = ""
    """When it was begun, in UTC."""
    bytes: int = 0
    """Of its folder."""
    trouble: str | None = None
    """What of it could not be read, in words."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a program."""
        return asdict(self)


def list_runs(
    folder: str | os.PathLike[str] = "runs", *, sort: str = "name", depth: int = DEPTH
) -> list[RunSummary]:
    """The runs in a folder, summed up; what ``tdpo runs`` does.

    Args:
        folder: that holds runs, or folders of runs; or one run.
        sort: ``name``, ``made``, ``size``, ``steps``, or a figure, such as ``eval_loss``: the best first,
            those without it last.
        depth: how many levels of folders are looked into.

    Raises:
        ConfigError: no such folder, no runs in it, or no such figure in any of them.
    """
    paths = run_folders(folder, depth)
    if not paths:
        raise ConfigError(
            f"{folder}: holds no run of tdpo fit, nor do the folders in it, {depth} levels deep; give the "
            "folder that holds the runs"
        )
    return in_order([summarise(path, Path(folder)) for path in paths], sort)


def in_order(runs: Sequence[RunSummary], sort: str) -> list[RunSummary]:
    """Runs sorted as :func:`list_runs` says.

    Raises:
        ConfigError: no such figure.
    """
    if sort in ORDERS:
        keys: dict[str, Callable[[RunSummary], Any]] = {
            "name": lambda run: run.name,
            "made": lambda run: run.made,
            "size": lambda run: -run.bytes,
            "steps": lambda run: -run.step,
        }
        return sorted(runs, key=keys[sort])
    check_figures(runs, [sort], "--sort", ORDERS)
    sign = -1 if any(sort in run.best and run.best[sort].larger for run in runs) else 1

    def place(run: RunSummary) -> tuple[bool, float, str]:
        value = run.figures.get(sort, math.nan)
        return (True, 0.0, run.name) if math.isnan(value) else (False, sign * value, run.name)

    return sorted(runs, key=place)


def check_figures(
    runs: Sequence[RunSummary], names: Sequence[str], option: str, words: Sequence[str] = ()
) -> None:
    """Refuse figures that none of the runs logged.

    Raises:
        ConfigError: names those that come nearest.
    """
    known = {figure for run in runs for figure in run.figures}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{option} {name}: none of these runs logged it{nearest(name, [*known, *words])}"
            )


def summarise(path: Path, above: Path) -> RunSummary:
    """What is to be said of the run in ``path``, which was found in ``above``."""
    name = path.relative_to(above).as_posix() if path != above else path.resolve().name
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    try:
        run = RunFolder.open(path)
    except ConfigError as error:
        return RunSummary(name, str(path), "unreadable", bytes=size, trouble=str(error))
    kept = tuple(map(checkpoint_step, checkpoints(path)))
    prefixes = [figure_prefix(each) for each in eval_caches(run.config.eval_cache)]
    return RunSummary(
        name=name,
        path=str(path),
        state="finished" if run.finished else "unfinished",
        step=max([run.steps, *kept]),
        steps=_whole_length(run),
        objective=run.config.objective_name,
        options=_options(run),
        cache=_cache(run),
        figures=kept_figures(run.events, run.best_step),
        best=_best(run),
        prefix=prefixes[0] if prefixes else "",
        checkpoints=kept,
        made=run.provenance.get("created") or _written(path / CONFIG_FILE),
        bytes=size,
        trouble=run.cut,
    )


def _whole_length(run: RunFolder) -> int | None:
    """Optimiser steps of the whole run: from its options, its checkpoints, or how far an epoch came."""
    if run.config.max_steps is not None:
        return run.config.max_steps
    for checkpoint in reversed(checkpoints(run.path)):
        try:
            return int(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["max_steps"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for event in reversed(run.events):
        if event["step"] and isinstance(epoch := event.get("epoch"), int | float) and epoch > 0:
            return round(event["step"] / epoch * run.config.epochs)
    return None


def _options(run: RunFolder) -> dict[str, Any]:
    found = run.provenance.get("options")
    return dict(run.config.set) if found is None else found


def _cache(run: RunFolder) -> str | None:
    if (whole := run.provenance.get("cache", {}).get("cache_sha256")) is not None:
        return str(whole)
    recorded = run.record.get("cache", {}).get("base")
    return None if recorded is None else identity_hash(recorded)


def _best(run: RunFolder) -> dict[str, Best]:
    found = {}
    for figure in run.figures:
        larger = larger_is_better(_bare(figure, run.config))
        curve = [point for point in run.curve(figure) if not math.isnan(point[1])]
        if larger is not None and curve:
            choose = max if larger else min
            step, value = choose(curve, key=lambda point: point[1])
            found[figure] = Best(value, step, larger)
    return found


def _bare(figure: str, config: FitConfig) -> str:
    """A figure's name without the evaluation cache's."""
    prefixes = [figure_prefix(name) for name in eval_caches(config.eval_cache)]
    longest = max((each for each in prefixes if figure.startswith(each)), key=len, default="")
    return figure.removeprefix(longest)


def _written(path: Path) -> str:
    when = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return when.isoformat(timespec="seconds")
