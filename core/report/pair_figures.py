"""Figures of single pairs under each run: what ``tdpo eval`` wrote, or a sample that is scored now."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...cache.errors import CacheError
from ...cache.manifest import identity_hash
from ...cache.reader import open_cache
from ..config.report import ReportConfig
from ..errors import TdpoError
from .frontier import EVAL_FOLDER, read_evaluation
from .gather import ReportedRun
from .tokens import default_cache

PAIRS_FILE = "pairs.parquet"

MARGIN = "rewards_margins"
RATIOS = ("log_ratios_chosen", "log_ratios_rejected")
_COLUMNS = (MARGIN, "rewards_chosen", "rewards_rejected", *RATIOS, "chosen_tokens", "rejected_tokens")


@dataclass(frozen=True)
class PairFigures:
    """Figures of N pairs of a cache under one run's policy."""

    number: int
    label: str
    source: str
    """How many pairs of what, and how they were scored, in words."""
    ids: list[str]
    """[N]."""
    columns: dict[str, np.ndarray]
    """Name as in ``pairs.parquet`` -> [N] float64; in nats, but for numbers of tokens."""

    def by_id(self, column: str) -> dict[str, float]:
        """A column by pair id."""
        return dict(zip(self.ids, self.columns[column].tolist(), strict=True))


@dataclass
class Looked:
    """The cache whose pairs are looked at, and what each run's policy says of them."""

    place: str
    reader: Any | None
    """None where the cache is not there any more."""
    figures: list[PairFigures] = field(default_factory=list)
    """One of each run that could be had."""
    notes: list[str] = field(default_factory=list)
    """What could not be had, and why."""
    hint: str = ""
    """How to get it."""


def look_at_pairs(runs: Sequence[ReportedRun], config: ReportConfig, *, quiet: bool = False) -> Looked:
    """The figures of pairs under every run, all of one cache.

    Raises:
        CacheError: the cache that ``config`` names cannot be opened.
    """
    looked = _open(runs, config)
    identity = None if looked.reader is None else identity_hash(looked.reader.identity)
    without = []
    for run in runs:
        if (written := _written(run, identity)) is not None:
            looked.figures.append(written)
        elif looked.reader is None or not config.pairs:
            without.append(run)
        else:
            try:
                looked.figures.append(_scored(run, looked, config, quiet))
            except TdpoError as error:
                looked.notes.append(f"{run.label}: its pairs could not be scored ({error}).")
    if without:
        looked.hint = _how_to(without, config)
    return looked


def _open(runs: Sequence[ReportedRun], config: ReportConfig) -> Looked:
    if config.cache is not None:
        return Looked(config.cache, open_cache(config.cache))
    place = default_cache(runs[0].run)
    try:
        return Looked(place, open_cache(place))
    except CacheError as error:
        return Looked(place, None, notes=[f"No pairs can be scored: {error}."] if config.pairs else [])


def _how_to(runs: Sequence[ReportedRun], config: ReportConfig) -> str:
    names = ", ".join(run.label for run in runs)
    if not config.pairs:
        return (
            f"No policy was asked about pairs (--pairs 0), and {names} not evaluated before: tdpo eval "
            f"{runs[0].run.path} does that."
        )
    return (
        f"For the pairs of {names}, say where the cache is now with --cache DIR, or run tdpo eval "
        f"{runs[0].run.path} --cache DIR first."
    )


def _written(run: ReportedRun, identity: str | None) -> PairFigures | None:
    """What ``tdpo eval`` wrote of the cache with this identity, or of any where it is None."""
    document = read_evaluation(run)
    evaluation = next(
        (
            one
            for one in document.get("evaluations", [])
            if identity is None or one.get("identity_sha256") == identity
        ),
        None,
    )
    path = run.run.path / EVAL_FOLDER / PAIRS_FILE
    if evaluation is None or not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, filters=[("cache", "=", evaluation["cache"])])
        found = {name: _numbers(table, name) for name in _COLUMNS if name in table.column_names}
        ids = table.column("pair_id").to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        return None
    if not ids or not {MARGIN, *RATIOS} <= found.keys():
        return None
    created = str(document.get("created", ""))[:10]
    return PairFigures(
        run.number,
        run.label,
        f"{len(ids):,} of {evaluation['pairs_in_cache']:,} pairs of {evaluation['place']}, by tdpo eval "
        f"on {created}",
        ids,
        found,
    )


def _numbers(table: Any, name: str) -> np.ndarray:
    return np.array(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)


def _scored(run: ReportedRun, looked: Looked, config: ReportConfig, quiet: bool) -> PairFigures:
    """A sample of the pairs, scored now; the same pairs for every run."""
    from ..config.eval import EvalConfig
    from ..evaluating.run import run_eval

    with tempfile.TemporaryDirectory() as nowhere:
        asked = EvalConfig(
            run=[str(run.run.path)],
            cache=[looked.place],
            limit=config.pairs,
            seed=config.seed,
            bootstrap=0,
            batch_tokens=config.batch_tokens,
            dtype=config.dtype,
            # A report shows the figures; the run's folder keeps those of a whole evaluation.
            out=nowhere,
        )
        table = run_eval(asked, quiet=quiet).evaluated[0].table
    every = {**table.columns, **table.figures}
    named = {name.replace("/", "_"): values for name, values in every.items()}
    return PairFigures(
        run.number,
        run.label,
        f"{len(table):,} of {len(looked.reader or ()):,} pairs of {looked.place}, drawn with the seed "
        f"{config.seed} and scored for this report",
        [str(one) for one in table.ids],
        {name: np.asarray(named[name], np.float64) for name in _COLUMNS if name in named},
    )
