"""A cache and the statistics added to it, read as one: what a fit trains from.

Added scores are joined to the base's pairs by ``pair_id`` while a batch is read; nothing is copied.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.manifest import Manifest, identity_differences
from ..cache.pairs import SIDES, ScoredPair
from ..cache.reader import CacheReader
from ..cache.schema import CachedStatistics
from ..cache.scores.reader import ScoreReader
from ..cache.scores.sets import ScoreSet
from .config.fit import FitConfig
from .errors import CacheError
from .join_plan import REFERENCE_COLUMNS, Join, plan_join
from .reading import AroundReader

if TYPE_CHECKING:
    from .objective import Objective


@dataclass(frozen=True)
class Added:
    """One added statistic of one pair."""

    shape: str
    """``token``, ``entries``, ``completion`` or ``pair``."""
    chosen: Any
    """[T], [T, n] or [d]."""
    rejected: Any
    """As ``chosen``; the same where it is the pair's."""


@dataclass(slots=True)
class JoinedPair(ScoredPair):
    """A cached pair with what was added to it: name in an objective's ``needs`` -> values."""

    added: dict[str, Added] = field(default_factory=dict)


def join_scores(
    config: FitConfig, objective: "Objective", reader: CacheReader, evaluations: Mapping[str, CacheReader]
) -> tuple[Any, dict[str, Any]]:
    """The training cache and those to evaluate on, each with the added scores that the objective needs.

    Raises:
        CacheError: a statistic that nothing provides; a set that is not there, does not cover the pairs, or
            differs between the caches.
        ConfigError: a statistic that several sets provide, or a --reference that is none.
    """
    plan = plan_join(config, objective, reader, "--cache")
    return joined_reader(reader, plan), {
        name: _join_evaluation(config, objective, reader, evaluation, plan)
        for name, evaluation in evaluations.items()
    }


def _join_evaluation(
    config: FitConfig, objective: "Objective", reader: CacheReader, evaluation: CacheReader, plan: Join
) -> Any:
    theirs = plan_join(config, objective, evaluation, "--eval-cache")
    for name in sorted(plan.sets):
        ours = reader.manifest.scores[name].identity
        other = evaluation.manifest.scores.get(name)
        if theirs != plan or other is None or identity_differences(other.identity, ours):
            raise CacheError(
                f"--eval-cache {evaluation.location}: its scores {name} are not made as those of --cache "
                f"{config.cache}; add both with the same tdpo cache add command"
            )
    return joined_reader(evaluation, theirs)


def joined_reader(reader: CacheReader, plan: Join) -> Any:
    """``reader``, or one that reads the planned scores with it."""
    return JoinedReader(reader, plan) if plan.sets else reader


class JoinedReader(AroundReader):
    """A :class:`~tdpo.cache.reader.CacheReader` whose pairs come with added statistics.

    ``manifest``, ``identity``, ``cached`` and ``statistics`` say what is read: where another reference takes
    the base's place, they are that one's. Everything else is the base reader's.
    """

    def __init__(self, reader: CacheReader, plan: Join):
        self.base, self.plan = reader, plan
        self.manifest = reader.manifest
        self._replaced: tuple[str, ...] = ()
        if plan.reference is not None:
            one = reader.manifest.scores[plan.reference]
            self._replaced = tuple(name for name in REFERENCE_COLUMNS if name in one.columns)
            self.manifest = _overlaid(reader.manifest, one)
        self.cached = CachedStatistics.of(self.manifest.identity, reader.location)
        wanted: dict[str, set[str]] = {name: set() for name in plan.sets}
        for name, column in plan.columns.values():
            wanted[name].add(column)
        if plan.reference is not None:
            wanted[plan.reference] |= set(self._replaced)
        self._scores = {
            name: ScoreReader(reader.location, name, columns=columns) for name, columns in wanted.items()
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What was scored."""
        return self.manifest.identity

    @property
    def statistics(self) -> frozenset[str]:
        """Names of the reference's statistics that are there."""
        return self.cached.names

    @property
    def head(self) -> int:
        """Likeliest tokens at each position, at most."""
        return self.cached.head

    @property
    def tail(self) -> int:
        """Draws from the rest at each position, at most."""
        return self.cached.tail

    @property
    def vocab_size(self) -> int:
        """V: width of the logits."""
        return self.cached.vocab_size

    def read(
        self, indices: Sequence[int] | np.ndarray, *, statistics: Collection[str] | None = None
    ) -> list[ScoredPair]:
        """The pairs at these row numbers, joined. See :meth:`CacheReader.read`."""
        asked = self.statistics if statistics is None else frozenset(statistics)
        # Of a statistic that is replaced, the base need not be decoded.
        replaced = {"dist" if name.startswith("dist_") else name for name in self._replaced}
        base = (asked - replaced) & self.base.statistics | {"ref_logp"}
        pairs = self.base.read(indices, statistics=base)
        values = {name: one.read([each.pair for each in pairs]) for name, one in self._scores.items()}
        return [self._joined(each, at, values, asked) for at, each in enumerate(pairs)]

    def close(self) -> None:
        """Close all files."""
        self.base.close()
        for one in self._scores.values():
            one.close()

    def _joined(
        self, one: ScoredPair, at: int, values: Mapping[str, Mapping[str, list[Any]]], asked: frozenset[str]
    ) -> JoinedPair:
        added = {}
        for name, (of, column) in self.plan.columns.items():
            shape = self._scores[of].columns[column].shape
            keys = (column, column) if shape == "pair" else tuple(f"{side}_{column}" for side in SIDES)
            added[name] = Added(shape, *(values[of][key][at] for key in keys))
        joined = JoinedPair(one.pair, one.chosen, one.rejected, added)
        if self.plan.reference is not None:
            found = values[self.plan.reference]
            taken = [n for n in self._replaced if ("dist" if n.startswith("dist_") else n) in asked]
            for side in SIDES:
                statistics = {name: found[f"{side}_{name}"][at] for name in taken}
                setattr(joined, side, replace(one.side(side), **statistics))
        return joined


def _overlaid(manifest: Manifest, one: ScoreSet) -> Manifest:
    """``manifest`` as if the base held what the set holds, in its place or beside it."""
    theirs, ours = dict(one.identity["statistics"]), manifest.identity["statistics"]
    provenance = manifest.provenance
    if one.kind == "reference":
        provenance = {**provenance, **{name: one.provenance.get(name) for name in ("reference", "adapter")}}
    if one.kind == "sample":
        # The same reference: what the set does not hold, the base still does.
        if not theirs["head"] + theirs["tail"]:
            theirs = {**ours, "entropy": True}
        else:
            theirs = {**ours, **theirs, "entropy": theirs["entropy"] or ours["entropy"]}
            theirs |= {name: ours[name] for name in ("hidden", "hidden_size") if name in ours}
    return replace(
        manifest,
        identity={**manifest.identity, "reference": one.identity["reference"], "statistics": theirs},
        provenance=provenance,
    )
