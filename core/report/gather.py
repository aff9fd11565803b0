"""The runs of a report, read: what each is called, what it was made of, and what it logged, line by line."""

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import CacheError
from ...cache.manifest import identity_hash
from ..config.command import fit_command
from ..config.evaluation import figure_prefix
from ..errors import ConfigError
from ..options import nearest
from ..runs.folder import RunFolder

TRAINING = "training"
EVALUATION = "evaluation"

_SHORT = 12


@dataclass(frozen=True)
class Line:
    """The values of one figure of one run in training, or on one of its evaluation caches."""

    run: int
    """Its place in the report."""
    label: str
    """What the run is called."""
    kind: str
    """``training``, ``evaluation``, or ``evaluation NAME``."""
    points: list[tuple[int, float]]
    """Step and value, by step."""


@dataclass(frozen=True)
class ReportedRun:
    """A run and what it is called in a report."""

    number: int
    """Its place in the report, from 0."""
    label: str
    """Its folder's name, and as much of the path as tells it from the others."""
    run: RunFolder

    @property
    def objective(self) -> str:
        """The objective with its weightings, as typed."""
        return " + ".join([*map(str, self.run.config.plugin), *map(str, self.run.config.weighting)])

    @property
    def options(self) -> dict[str, Any]:
        """The options of objective and weightings that were given, or that are not their defaults."""
        return self.run.provenance.get("options") or self.run.config.set

    @property
    def command(self) -> str:
        """What was typed, or would be for the same run."""
        return self.run.provenance.get("command") or fit_command(self.run.config)

    @property
    def cache_id(self) -> str | None:
        """SHA-256 of the identity of its cache, as recorded; None for a run without a record."""
        base = (self.run.record.get("cache") or {}).get("base")
        return identity_hash(base) if base else None

    @property
    def cache_short(self) -> str:
        """The first digits of :attr:`cache_id`."""
        return (self.cache_id or "not recorded")[:_SHORT]

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that trained it; empty where they were not recorded."""
        return self.run.provenance.get("versions") or {}

    @property
    def created(self) -> datetime.datetime | None:
        """When it was started, where that was recorded."""
        try:
            return datetime.datetime.fromisoformat(str(self.run.provenance.get("created")))
        except ValueError:
            return None

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end: its policy was saved."""
        return self.run.has_model

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of line -> what stands before the names of its figures."""
        names = self.run.eval_caches
        evaluations = {f"{EVALUATION} {name}".rstrip(): figure_prefix(name) for name in names}
        return {TRAINING: "", **evaluations}

    def lines(self, figure: str) -> list[Line]:
        """Its lines of a figure, named as in training."""
        found = [
            Line(self.number, self.label, kind, self.run.curve(f"{prefix}{figure}"))
            for kind, prefix in self.kinds.items()
        ]
        return [line for line in found if line.points]

    @property
    def figures(self) -> list[str]:
        """The figures that it logged, named as in training."""
        prefixes = sorted((prefix for prefix in self.kinds.values() if prefix), key=len, reverse=True)
        names = []
        for name in self.run.figures:
            prefix = next((one for one in prefixes if name.startswith(one)), "")
            names.append(name.removeprefix(prefix))
        return list(dict.fromkeys(names))


def gather(runs: Sequence[RunFolder]) -> list[ReportedRun]:
    """The runs under names that tell them apart.

    Raises:
        ConfigError: a run is given twice, or none of them logged anything.
    """
    places = [run.path.resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{runs[number].path}: is given twice; give each run once")
    found = [
        ReportedRun(number, label, run)
        for number, (label, run) in enumerate(zip(_labels(places), runs, strict=True))
    ]
    if not any(run.events for run in runs):
        raise ConfigError(
            f"nothing to report: {runs[0].cut or f'{runs[0].path} logged no figures'}"
            f"{f', nor did the {len(runs) - 1} other runs' if len(runs) > 1 else ''}; "
            "give a run that has made a step"
        )
    return found


def chosen_figures(asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """The figures to draw: those asked for, in that order, or all.

    Raises:
        ConfigError: none of the runs logged one of them; names the nearest.
    """
    for name in asked:
        if name not in known:
            raise ConfigError(f"--metric {name}: no run logged a figure of that name{nearest(name, known)}")
    return list(asked or known)


def cache_of(run: RunFolder) -> str | None:
    """The manifest's hash of the cache that lies where the run's was; None where there is none any more."""
    from ...cache.reader import open_cache

    try:
        return identity_hash(open_cache(run.cache).identity)
    except CacheError:
        return None


def _labels(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are different from each other."""
    depth = [1] * len(places)
    while True:
        labels = ["/".join(place.parts[-parts:]) for place, parts in zip(places, depth, strict=True)]
        counts = Counter(labels)
        again = [number for number, label in enumerate(labels) if counts[label] > 1]
        if not again:
            return labels
        for number in again:
            depth[number] += 1
