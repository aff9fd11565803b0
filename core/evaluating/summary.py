"""From tables of single pairs to what is reported: figures with intervals, slices, differences, checks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ...cache.manifest import identity_differences, identity_hash
from ...cache.pairs import SIDES
from ..config.command import command_line
from ..config.eval import EvalConfig
from ..training.provenance import now, versions
from .calibration import reliability
from .compare import differences
from .conditions import Condition
from .intervals import Bootstrap
from .request import Subject, Target
from .slices import FEW_PROMPTS, Slicing, cut
from .table import Table, chosen_names, common_rows

# Nats of a whole completion.
_ROUNDING = 1e-3

FORMAT = "tdpo-eval"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Evaluated:
    """A policy on a cache."""

    subject: Subject
    cache: str
    """The cache's name; ``""`` where it has none."""
    target: Target
    table: Table
    """A row a pair."""
    samples: Table | None = None
    """A row a sample; None where none were drawn."""
    samples_notes: Sequence[str] = ()
    """What whoever reads their figures must know."""

    @property
    def tables(self) -> list[Table]:
        """What there are figures of."""
        return [self.table] if self.samples is None else [self.table, self.samples]

    @property
    def names(self) -> list[str]:
        """Names of all figures."""
        return [name for table in self.tables for name in table.names]


def summarise(
    config: EvalConfig,
    subjects: Sequence[Subject],
    evaluated: Sequence[Evaluated],
    slicings: Sequence[Slicing],
    conditions: Sequence[Condition],
) -> dict[str, Any]:
    """The content of ``eval.json``, as plain values."""
    bootstrap = Bootstrap(config.bootstrap, config.confidence, config.seed)
    evaluations = [_evaluation(config, one, slicings, bootstrap) for one in evaluated]
    comparisons = [
        _comparison(config, a, b, slicings, bootstrap) for a, b in _to_compare(subjects, evaluated)
    ]
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": now(),
        "command": command_of(config),
        "versions": versions(),
        "options": {each.name: getattr(config, each.name) for each in fields(config)},
        "runs": [_run(subject) for subject in subjects],
        "evaluations": evaluations,
        "comparisons": comparisons,
        "checks": _checks(conditions, evaluated, bootstrap),
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def command_of(config: EvalConfig) -> str:
    """The ``tdpo eval`` that gives this configuration."""
    flags = command_line("tdpo eval", config, ("run",)).removeprefix("tdpo eval")
    return f"tdpo eval {shlex.join(config.run)}{flags}"


def _run(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "place": subject.place,
        "is_run": subject.run is not None,
        "policy": subject.policy,
        "identity": subject.identity,
        "plugin": subject.config.objective_name,
        "objective": str(next(iter(subject.targets.values())).objective),
        "steps": subject.run.steps if subject.run is not None else None,
        "notes": list(subject.notes),
    }


def _evaluation(
    config: EvalConfig, one: Evaluated, slicings: Sequence[Slicing], bootstrap: Bootstrap
) -> dict[str, Any]:
    table, identity = one.table, one.target.reader.identity
    return {
        "run": one.subject.name,
        "cache": one.cache,
        "place": one.target.place,
        "identity_sha256": identity_hash(identity),
        "reference": identity.get("reference"),
        "pairs": len(table),
        "pairs_in_cache": len(one.target.reader),
        "prompts": table.prompts,
        "samples": len(one.samples) if one.samples is not None else None,
        "notes": [*one.target.notes, *_on_reference(table), *one.samples_notes],
        "figures": _figures(config, one.tables, bootstrap),
        "reliability": reliability(table, config.calibration_bins),
        "slices": [
            {
                "column": part.column,
                "label": part.label,
                "pairs": int(part.rows.sum()),
                "prompts": (inside := table.take(part.rows)).prompts,
                "few": inside.prompts < FEW_PROMPTS,
                "figures": _figures(config, [inside, *_of_pairs(one.samples, inside)], bootstrap),
            }
            for slicing in slicings
            for part in cut(table, slicing)
        ],
    }


def _of_pairs(samples: Table | None, pairs: Table) -> list[Table]:
    """The samples on the prompts of some pairs, as a list: empty where there are none."""
    if samples is None or not (inside := np.isin(samples.ids, pairs.ids)).any():
        return []
    return [samples.take(inside)]


def _on_reference(table: Table) -> list[str]:
    """What to know where the policy says just what the reference did."""
    ratios = np.concatenate([table.figures[f"log_ratios/{side}"] for side in SIDES])
    if np.abs(ratios).max() > _ROUNDING:
        return []
    return ["gives the reference's own log-probs: its margins are rounding, and their signs mean nothing"]


def _figures(config: EvalConfig, tables: Sequence[Table], bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        name: estimate.as_dict()
        for table in tables
        for name, estimate in bootstrap.estimates(table, chosen_names(config.metric, table.names)).items()
    }


def _to_compare(
    subjects: Sequence[Subject], evaluated: Sequence[Evaluated]
) -> list[tuple[Evaluated, Evaluated]]:
    """Each further policy with the first, on caches of one name, or on the only one that each has."""
    by_run = {
        subject.name: {one.cache: one for one in evaluated if one.subject is subject} for subject in subjects
    }
    first, *others = by_run.values()
    found = []
    for other in others:
        if len(first) == len(other) == 1:
            found.append((next(iter(first.values())), next(iter(other.values()))))
        else:
            found += [(one, other[name]) for name, one in first.items() if name in other]
    return found


def _comparison(
    config: EvalConfig, a: Evaluated, b: Evaluated, slicings: Sequence[Slicing], bootstrap: Bootstrap
) -> dict[str, Any]:
    pairs_a, pairs_b = _joined(a.table, b.table)
    joined = [(pairs_a, pairs_b)]
    samples_a, samples_b = None, None
    if a.samples is not None and b.samples is not None:
        samples_a, samples_b = _joined(a.samples, b.samples)
        joined.append((samples_a, samples_b))

    def apart(both: Sequence[tuple[Table, Table]]) -> dict[str, Any]:
        return {name: found for two in both for name, found in _apart(config, *two, bootstrap).items()}

    return {
        "a": a.subject.name,
        "b": b.subject.name,
        "cache": a.cache,
        "cache_b": b.cache,
        "pairs": len(pairs_a),
        "prompts": pairs_a.prompts,
        "only_a": len(a.table) - len(pairs_a),
        "only_b": len(b.table) - len(pairs_b),
        "notes": _on_comparing(a, b, len(pairs_a)),
        "figures": apart(joined),
        "slices": [
            {
                "column": part.column,
                "label": part.label,
                "pairs": int(part.rows.sum()),
                "prompts": (inside := pairs_a.take(part.rows)).prompts,
                "few": inside.prompts < FEW_PROMPTS,
                "figures": apart(
                    [
                        (inside, pairs_b.take(part.rows)),
                        *zip(_of_pairs(samples_a, inside), _of_pairs(samples_b, inside), strict=True),
                    ]
                ),
            }
            for slicing in slicings
            # What depends on the policy would cut each one's pairs in another way.
            if len(pairs_a) and slicing.column in pairs_a.columns
            for part in cut(pairs_a, slicing)
        ],
    }


def _joined(a: Table, b: Table) -> tuple[Table, Table]:
    in_a, in_b = common_rows(a, b)
    return a.take(in_a), b.take(in_b)


def _apart(config: EvalConfig, a: Table, b: Table, bootstrap: Bootstrap) -> dict[str, Any]:
    """Differences of the figures that both have; none of no rows."""
    names = [name for name in chosen_names(config.metric, a.names) if name in b.names] if len(a) else []
    return {name: one.as_dict() for name, one in differences(a, b, names, bootstrap).items()}


def _on_comparing(a: Evaluated, b: Evaluated, common: int) -> list[str]:
    """What makes two policies' figures less alike than they look."""
    notes = []
    theirs, ours = a.target.reader.identity, b.target.reader.identity
    if identity_hash(theirs) != identity_hash(ours):
        notes.append(
            f"evaluated on different caches, {a.target.place} and {b.target.place}: compared on the "
            f"{common:,} pairs that both hold, of {len(a.table):,} and {len(b.table):,}"
        )
    if identity_differences({"reference": theirs["reference"]}, {"reference": ours["reference"]}):
        notes.append("their references differ: so do the models that log-ratios, rewards and KL are to")
    if str(a.target.objective) != str(b.target.objective):
        notes.append(
            f"rewards and loss are those of {a.target.objective} and of {b.target.objective}; give one "
            "--plugin to measure both by the same"
        )
    return notes


def _checks(
    conditions: Sequence[Condition], evaluated: Sequence[Evaluated], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    found = []
    for one in evaluated:
        asked = {condition.figure for condition in conditions}
        figures = {
            name: estimate.as_dict()
            for table in one.tables
            for name, estimate in bootstrap.estimates(table, sorted(asked & {*table.names})).items()
        }
        found += [
            {"run": one.subject.name, "cache": one.cache, **condition.check(figures)}
            for condition in conditions
        ]
    return found


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
