"""Which added scores a fit reads: found among a cache's sets by the names in an objective's ``needs``."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from ..cache.pairs import SideStatistics
from ..cache.reader import CacheReader
from ..cache.scores.sets import ScoreSet, sets_in_use
from .config.fit import FitConfig
from .errors import CacheError, ConfigError, PluginError
from .options import nearest

if TYPE_CHECKING:
    from .objective import Objective

# The columns that say what a reference said: those of a base shard's sides.
REFERENCE_COLUMNS = tuple(each.name for each in fields(SideStatistics))


@dataclass(frozen=True)
class Join:
    """Which added scores are read, and as what."""

    reference: str | None = None
    """The set whose reference, or whose larger sample, takes the place of the base's."""
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name in ``needs`` -> set and column."""

    @property
    def sets(self) -> set[str]:
        """Names of the sets that are read."""
        return {name for name, _ in self.columns.values()} | ({self.reference} if self.reference else set())


def plan_join(config: FitConfig, objective: "Objective", reader: CacheReader, option: str) -> Join:
    """Find what the objective needs among the scores of one cache.

    Raises:
        CacheError: a statistic that nothing provides, or a set that is not there.
        ConfigError: a statistic that several sets provide, or a --reference that is none.
    """
    from .checks import FROM_CACHE

    scores = _usable(config, reader, option)
    columns = {}
    for name in sorted(objective.needs - FROM_CACHE.keys()):
        columns[name] = _find(name, scores, config, reader, option)
    reference = config.reference
    if reference is not None:
        _check_reference(reference, scores, option, reader)
    else:
        held = {FROM_CACHE[name] for name in objective.needs & FROM_CACHE.keys()}
        lacking = {"dist", "ref_entropy"} & held - reader.statistics
        if lacking and not (lacking == {"dist"} and reader.cached.whole):
            reference = _only_sample(lacking, scores, config)
    return Join(reference, columns)


def _usable(config: FitConfig, reader: CacheReader, option: str) -> dict[str, ScoreSet]:
    """The sets to look at: those that ``--scores`` names, or all that are finished."""
    there = dict(sets_in_use(reader.manifest.scores))
    asked = None if config.scores is None else [name.strip() for name in config.scores.split(",")]
    for name in [*(asked or ()), *([config.reference] if config.reference else [])]:
        if name not in there:
            raise CacheError(
                f"{option} {reader.location} has no scores {name!r}{nearest(name, there)}; add them with "
                "tdpo cache add"
            )
    return {
        name: one
        for name, one in there.items()
        if name in (config.reference, *(asked or ())) or (asked is None and one.complete)
    }


def _find(
    name: str, scores: Mapping[str, ScoreSet], config: FitConfig, reader: CacheReader, option: str
) -> tuple[str, str]:
    """Set and column of ``COLUMN`` or ``SET.COLUMN``."""
    of, _, column = name.rpartition(".")
    holders = [each for each, one in scores.items() if column in one.columns and of in ("", each)]
    if len(holders) > 1:
        raise ConfigError(
            f"{config.objective_flags} needs the statistic {name!r}, which the scores "
            f"{' and '.join(holders)} of {option} {reader.location} hold: choose with --scores {holders[0]}"
        )
    if not holders:
        raise _missing(name, of, column, scores, config, reader, option)
    return holders[0], column


def _missing(
    name: str,
    of: str,
    column: str,
    scores: Mapping[str, ScoreSet],
    config: FitConfig,
    reader: CacheReader,
    option: str,
) -> CacheError:
    from .checks import FROM_CACHE

    known = [*FROM_CACHE, *(each for one in scores.values() for each in one.columns)]
    command = _command(of, column)
    lacks = f"which {option} {reader.location} lacks"
    start = f"{config.objective_flags} needs the statistic {name!r}, {lacks}"
    if command is not None:
        return CacheError(f"{start}: add it with tdpo cache add {reader.location} {command}")
    hint = nearest(name, known)
    if "did you mean" not in hint:
        hint = "; install the plugin that computes it, and add it with tdpo cache add --statistic NAME"
    return CacheError(f"{start}{hint}")


def _command(of: str, column: str) -> str | None:
    """The options of the ``tdpo cache add`` that makes a column, where one is known to."""
    if column in ("positive_logp", "negative_logp"):
        return f"--name {of or 'contrast'} --positive MODEL --negative MODEL"
    if column in REFERENCE_COLUMNS:
        more = {
            "ref_entropy": " --entropy",
            "dist_ids": " --head 8 --tail 8",
            "dist_logp": " --head 8 --tail 8",
        }
        return f"--name {of or 'second'} --ref MODEL{more.get(column, '')}"
    from .registry import statistic_class, statistics

    for statistic in statistics():
        # One that does not load must not hide the others.
        with suppress(PluginError):
            if column in statistic_class(statistic).columns:
                return f"--name {of or statistic} --statistic {statistic}"
    return None


def _check_reference(name: str, scores: Mapping[str, ScoreSet], option: str, reader: CacheReader) -> None:
    if scores[name].kind not in ("reference", "sample"):
        raise ConfigError(
            f"--reference {name}: the scores {name} of {option} {reader.location} are of kind "
            f"{scores[name].kind}; name ones of another reference (tdpo cache add --ref MODEL) or of a "
            "larger sample (--head K --tail M)"
        )


def _only_sample(lacking: set[str], scores: Mapping[str, ScoreSet], config: FitConfig) -> str | None:
    """The one set of the base's own reference that holds what the base lacks."""
    holders = []
    for name, one in scores.items():
        held = {"dist" if column.startswith("dist_") else column for column in one.columns}
        if one.kind == "sample" and lacking <= held:
            holders.append(name)
    if len(holders) > 1:
        raise ConfigError(
            f"{config.objective_flags} needs what the scores {' and '.join(holders)} hold: choose "
            f"with --reference {holders[0]}"
        )
    return holders[0] if holders else None
