"""What was run: every run with its command, the cache it was trained from, and what made it."""

from collections.abc import Iterator, Sequence
from typing import Any

from .gather import ReportedRun, cache_of
from .page import Section, rendered, template
from .tables import Cell, Column, number, table


def overview_section(runs: Sequence[ReportedRun]) -> Section:
    """A table of the runs, and the particulars of each."""
    html = rendered(
        "overview.html.j2",
        table=_summary(runs),
        caches=cache_notes(runs),
        runs=[(run, list(_particulars(run))) for run in runs],
    )
    return Section("runs", "What was run", html, style=template("overview.css"))


def cache_notes(runs: Sequence[ReportedRun]) -> list[str]:
    """What is to be said of runs that were not trained, or not evaluated, from the same cache."""
    notes = []
    if len(groups := _grouped(runs, lambda run: run.cache_id)) > 1:
        notes.append(
            f"These runs were trained from different caches: {_by_cache(groups)}. What differs between them "
            "may come from their data or their reference, not from their objectives."
        )
    if len(groups := _grouped(runs, _evaluated_on)) > 1:
        notes.append(
            f"These runs were evaluated on different caches: {_by_cache(groups)}. Their evaluation figures "
            "are of different pairs."
        )
    if unknown := [run.label for run in runs if run.cache_id is None]:
        notes.append(
            f"Made by a version that did not record it, so that the cache cannot be compared: "
            f"{', '.join(unknown)}."
        )
    return notes


def _grouped(runs: Sequence[ReportedRun], key: Any) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for run in runs:
        if (value := key(run)) is not None:
            groups.setdefault(value, []).append(run.label)
    return groups


def _evaluated_on(run: ReportedRun) -> str | None:
    from ...cache.manifest import identity_hash

    recorded = run.run.record.get("evaluation") or {}
    return " ".join(sorted(identity_hash(one["base"]) for one in recorded.values())) or None


def _by_cache(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(labels)} ({identity[:12]})" for identity, labels in groups.items())


def _summary(runs: Sequence[ReportedRun]) -> Any:
    columns = [
        Column("run"),
        Column("objective"),
        Column("options", css="code"),
        Column("starts from"),
        Column("cache", css="code"),
        Column("steps", numeric=True),
        Column("state", css="nowrap"),
        Column("started (UTC)", css="nowrap"),
    ]
    rows = [
        [
            run.label,
            run.objective,
            " ".join(f"{name}={value}" for name, value in run.options.items()) or "defaults",
            start(run),
            run.cache_short,
            number(run.run.steps),
            "finished" if run.is_finished else "not finished",
            Cell(run.created.strftime("%Y-%m-%d %H:%M"), run.created.isoformat())
            if run.created
            else Cell("not recorded"),
        ]
        for run in runs
    ]
    return table(columns, rows, id="runs-table", caption="The runs of this report")


def start(run: ReportedRun) -> str:
    """The model that a run starts from."""
    origin = run.run.provenance.get("cache") or {}
    asked = run.run.provenance.get("start") or run.run.config.model
    return str(asked or origin.get("reference") or "the cache's reference")


def _particulars(run: ReportedRun) -> Iterator[tuple[str, str, bool]]:
    """What, its text, and whether that is code."""
    provenance = run.run.provenance
    origin = provenance.get("cache") or {}
    yield "command", run.command, True
    yield "folder", str(run.run.path), True
    yield "trained from", _cache(run, origin), False
    if origin.get("command"):
        yield "cache made by", str(origin["command"]), True
    if origin.get("reference"):
        yield "reference", str(origin["reference"]), True
    for name, place in run.run.eval_caches.items():
        yield f"evaluated on{f' ({name})' if name else ''}", place, True
    if provenance.get("paper"):
        yield "objective from", str(provenance["paper"]), False
    if provenance.get("hardware"):
        yield "on", str(provenance["hardware"]), False
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    yield "versions", versions or "not recorded", False
    if run.run.cut:
        yield "metrics", run.run.cut, False


def _cache(run: ReportedRun, origin: dict[str, Any]) -> str:
    parts = [run.run.config.cache]
    if run.cache_id:
        parts.append(f"identity {run.cache_id}")
    elif (now := cache_of(run.run)) is not None:
        parts.append(f"not recorded which; the cache that lies there now has the identity {now}")
    if origin.get("rows"):
        parts.append(f"{origin['rows']:,} pairs, {origin['completion_tokens']:,} completion tokens")
    return "; ".join(parts)
