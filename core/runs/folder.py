"""A run that was made, opened to be looked at: its options, what it was made of, its figures, its model."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.manifest import identity_differences
from ...cache.storage.files import is_url
from ..config.evaluation import eval_caches
from ..config.file import CONFIG_FILE, fit_config, read_config
from ..config.fit import FitConfig
from ..errors import CacheError, ConfigError
from .lines import METRICS_FILE, StepLines
from .record import RECORD_FILE, read_record

# Levels of folders below the one named that runs are looked for in.
DEPTH = 3

_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class RunFolder:
    """A folder that ``tdpo fit`` wrote. Opening it reads no weights and imports no torch."""

    path: Path
    config: FitConfig
    """The resolved options."""
    record: dict[str, Any]
    """What it was made of (:data:`~tdpo.core.runs.record.RECORD_FILE`); empty where that cannot be read."""
    events: list[dict[str, Any]]
    """The logged events, each with ``step``, in their order."""
    cut: str | None
    """What of the events could not be read, in words; None if all could."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The run in the folder ``path``.

        Raises:
            ConfigError: it is no run.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ConfigError(
                f"{folder}: no such folder; give the folder that tdpo fit wrote, such as runs/dpo"
            )
        if not is_run(folder):
            raise ConfigError(
                f"{folder}: is no run of tdpo fit (its {CONFIG_FILE} with the options of one is missing)"
                f"{_near(folder)}"
            )
        config = fit_config({}, folder / CONFIG_FILE)
        events, cut = StepLines(folder / METRICS_FILE).read()
        return cls(folder, config, read_record(folder), events, cut)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def provenance(self) -> dict[str, Any]:
        """How it came to be (:mod:`~tdpo.core.training.provenance`); empty where that is not recorded."""
        return self.record.get("provenance") or {}

    @property
    def finished(self) -> bool:
        """Whether it came to its end; one that goes on with ``--resume`` did so before."""
        return self.has_model and (not self.provenance or self.provenance.get("finished") is not None)

    @property
    def best_step(self) -> int | None:
        """The step whose policy a finished run kept, where that was chosen by a figure."""
        return (self.provenance.get("finished") or {}).get("best_step")

    @property
    def steps(self) -> int:
        """The last step that was logged; 0 where none was."""
        return max((int(event["step"]) for event in self.events), default=0)

    @property
    def has_model(self) -> bool:
        """Whether the policy was saved, as a model or a LoRA."""
        return _has_model(self.path)

    def curve(self, figure: str) -> list[tuple[int, float]]:
        """The values of a logged figure, such as ``eval_loss``, by step; none where it is not logged."""
        found: dict[int, float] = {}
        for event in self.events:
            if isinstance(value := event.get(figure), int | float):
                found[int(event["step"])] = float(value)
        return sorted(found.items())

    @property
    def figures(self) -> list[str]:
        """Names of all figures that were logged, sorted."""
        names = {
            name for event in self.events for name, value in event.items() if isinstance(value, int | float)
        }
        return sorted(names - {"step", "epoch"})

    def place(self, path: str) -> str:
        """Where something that the options name is: there, or where the run's folder has moved with it.

        Relative names are those of the folder in which the run was started, which is this one, or holds the
        run's folder at some depth.
        """
        if is_url(path) or Path(path).is_absolute() or Path(path).exists():
            return path
        for above in self.path.resolve().parents:
            if (above / path).exists():
                return str(above / path)
        return path

    @property
    def cache(self) -> str:
        """Where the cache it was trained from is."""
        return self.place(self.config.cache)

    @property
    def eval_caches(self) -> dict[str, str]:
        """Name -> place of the caches it was evaluated on; one without a name is ``""``."""
        return {name: self.place(place) for name, place in eval_caches(self.config.eval_cache).items()}

    def check_cache(self, reader: Any, name: str | None = None) -> None:
        """Refuse a cache that is not the one the run was made from.

        Args:
            reader: of the cache.
            name: of an evaluation cache; None for the training cache.

        Raises:
            CacheError: says what is different.
        """
        recorded = self.record.get("cache") if name is None else self.record.get("evaluation", {}).get(name)
        if not recorded:
            return
        if differences := identity_differences(recorded["base"], reader.identity, ("the run had", "it has")):
            raise CacheError(
                f"{reader.location}: is not the cache that {self.path} was made from ({differences[0]}); "
                "give the one that was with --cache"
            )


def open_runs(paths: Sequence[str | os.PathLike[str]]) -> list[RunFolder]:
    """The runs in these folders. Raises as :meth:`RunFolder.open`."""
    return [RunFolder.open(path) for path in paths]


def find_runs(folder: str | os.PathLike[str], depth: int = DEPTH) -> list[RunFolder]:
    """The runs in a folder, itself among them, in order of name; those that cannot be read are passed over.

    Raises as :func:`run_folders`.
    """
    found = []
    for path in run_folders(folder, depth):
        try:
            found.append(RunFolder.open(path))
        except ConfigError:
            continue
    return found


def run_folders(folder: str | os.PathLike[str], depth: int = DEPTH) -> list[Path]:
    """The folders of runs in a folder, itself among them, in order of name.

    Args:
        folder: that holds them.
        depth: how many levels of folders below it are looked into; a run's own are not.

    Raises:
        ConfigError: there is no such folder.
    """
    above = Path(folder)
    if not above.is_dir():
        raise ConfigError(f"{above}: no such folder; give the folder that holds the runs, such as runs")
    return list(_walk(above, depth))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth and os.access(folder, os.R_OK | os.X_OK):
        # Links are not followed: they may lead around in a circle.
        inside = (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        for path in sorted(path for path in inside if not path.name.startswith(".")):
            yield from _walk(path, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether ``tdpo fit`` wrote this folder: its options are there, and something that came of them.

    A ``tdpo.yaml`` alone says what is to be run.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    if any((folder / name).is_file() for name in (RECORD_FILE, METRICS_FILE)):
        return True
    return _has_model(folder) and bool(read_config(folder / CONFIG_FILE)["fit"])


def _has_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MODEL_FILES)


def _near(folder: Path) -> str:
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if (folder / "manifest.json").is_file():
        return "; it is a cache: see tdpo cache info"
    return f"; there are some in it: {', '.join(map(str, inside[:3]))}" if inside else ""
