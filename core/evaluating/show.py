"""An evaluation on the terminal: a table of figures, then slices, differences, what to know, and checks."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Without --metric the figures that say most; all of them are in eval.json.
SHOWN = (
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "loss",
    "calibration/brier",
    "calibration/ece",
    "calibration/ece_by_chance",
    "kl/chosen",
    "kl/rejected",
    "kl/margin",
    "reverse_kl/chosen",
    "reverse_kl/rejected",
    "logps/chosen",
    "logps/rejected",
    "entropy",
    "ref_entropy",
    "length/reward_spearman",
    "length/margin_spearman",
    "rules/shorter",
    "rules/likelier",
)
SHOWN_OF_SAMPLES = (
    "samples/reward",
    "samples/reward_difference/reference",
    "samples/win_rate/reference",
    "samples/reward_difference/against",
    "samples/win_rate/against",
    "samples/kl",
    "samples/reverse_kl",
    "samples/log_ratio",
    "samples/entropy",
    "samples/tokens",
    "samples/finished",
    "samples/repetition",
    "samples/distinct_1",
    "samples/distinct_2",
    "samples/distinct_4",
    "samples/unique",
)
_OF_SLICES = ("rewards/accuracies", "rewards/margins", "kl/margin", "samples/reward", "samples/kl")
_WIDE = 200


def show(document: Mapping[str, Any], *, asked: bool) -> None:
    """Print the content of ``eval.json``.

    Args:
        document: it.
        asked: whether figures were named: then all that there are are shown.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    for cache in dict.fromkeys((one["cache"], one["place"]) for one in document["evaluations"]):
        of_cache = [one for one in document["evaluations"] if (one["cache"], one["place"]) == cache]
        _figures(console, of_cache, asked=asked)
        _samples(console, of_cache, document["options"]["samples_per_prompt"], asked=asked)
        _on_intervals(console, document["options"])
        if len(of_cache) == 1 and not asked:
            _reliability(console, of_cache[0]["reliability"])
        _slices(console, of_cache, asked=asked)
    for comparison in document["comparisons"]:
        _comparison(console, comparison, asked=asked)
    for line in _notes(document):
        console.print(line, markup=False, soft_wrap=True)
    for check in document["checks"]:
        verdict = "holds" if check["passed"] else "does NOT hold"
        on = f" on {check['cache']}" if check["cache"] else ""
        console.print(
            f"{check['condition']} {verdict} for {check['run']}{on}: {number(check['value'])}",
            markup=False,
            soft_wrap=True,
        )


def _figures(console: Console, evaluations: Sequence[Mapping[str, Any]], *, asked: bool) -> None:
    first = evaluations[0]
    limited = f" of {first['pairs_in_cache']:,}" if first["pairs"] < first["pairs_in_cache"] else ""
    prompts = f", {first['prompts']:,} prompts" if first["prompts"] < first["pairs"] else ""
    name = f"{first['cache']}: " if first["cache"] else ""
    title = f"{name}{first['place']}, {first['pairs']:,}{limited} pairs{prompts}"
    table = _table("figure", *(one["run"] for one in evaluations), title=title)
    for name in _names(evaluations, SHOWN, asked=asked):
        if not name.startswith("samples/"):
            table.add_row(name, *(_with_interval(one["figures"].get(name)) for one in evaluations))
    if table.row_count:
        console.print(table)


def _on_intervals(console: Console, options: Mapping[str, Any]) -> None:
    if options["bootstrap"]:
        console.print(
            f"\\[ends of the {100 * options['confidence']:g} % interval over prompts]; ties count one half",
            style="dim",
        )


def _samples(console: Console, evaluations: Sequence[Mapping[str, Any]], times: int, *, asked: bool) -> None:
    """The figures of samples, with columns for those of the reference's and of what they compete with."""
    figures = evaluations[0]["figures"]
    # A policy's own figure, or what sets it against the others, has a row; the others' stands beside it.
    beside = {f"{name}/{other}" for name in figures for other in ("reference", "against")}
    names = [
        name
        for name in _names(evaluations, SHOWN_OF_SAMPLES, asked=asked)
        if name.startswith("samples/") and name not in beside
    ]
    if not names:
        return
    others = [
        other for other in ("reference", "against") if any(f"{name}/{other}" in figures for name in names)
    ]
    each = f", {times} of each" if times > 1 else ""
    title = f"samples on {evaluations[0]['samples'] // times:,} prompts{each}"
    table = _table("figure", *(one["run"] for one in evaluations), *others, title=title)
    for name in names:
        table.add_row(
            name,
            *(_with_interval(one["figures"].get(name)) for one in evaluations),
            *(
                _with_interval(figures.get(f"{name}/{other}")) if f"{name}/{other}" in figures else ""
                for other in others
            ),
        )
    console.print(table)


def _reliability(console: Console, bins: Sequence[Mapping[str, Any]]) -> None:
    table = _table("sigmoid(|margin|)", "pairs", "mean", "right", title="reliability of the implicit reward")
    for one in bins:
        if one["pairs"]:
            values = number(one["predicted"]), number(one["observed"])
            table.add_row(f"{one['low']:.4g} to {one['high']:.4g}", f"{one['pairs']:,}", *values)
    console.print(table)


def _slices(console: Console, evaluations: Sequence[Mapping[str, Any]], *, asked: bool) -> None:
    parts = [(one["run"], part) for one in evaluations for part in one["slices"]]
    if not parts:
        return
    names = _names([part for _, part in parts], _OF_SLICES, asked=asked)
    table = _table("slice", "run", "pairs", *names, title="slices")
    for run, part in parts:
        few = " (few)" if part["few"] else ""
        table.add_row(
            _plain(f"{part['column']}: {part['label']}{few}"),
            _plain(run),
            f"{part['pairs']:,}",
            *(_with_interval(part["figures"].get(name)) for name in names),
        )
    console.print(table)


def _comparison(console: Console, one: Mapping[str, Any], *, asked: bool) -> None:
    on = f" on {one['cache']}" if one["cache"] else ""
    table = _table(
        "figure",
        one["a"],
        one["b"],
        "difference",
        "p",
        title=f"{one['b']} less {one['a']}{on}, {one['pairs']:,} pairs",
    )
    for name in _names([one], (*SHOWN, *SHOWN_OF_SAMPLES), asked=asked):
        each = one["figures"][name]
        if each["a"] == each["b"]:
            continue
        table.add_row(
            name, number(each["a"]), number(each["b"]), _with_interval(each), number(each["p"], digits=2)
        )
    if table.row_count:
        console.print(table)
    else:
        found = "no difference in any figure" if one["pairs"] else "no pairs in common"
        console.print(f"{one['b']} less {one['a']}{on}: {found}", markup=False)


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    for run in document["runs"]:
        yield from (f"note: {run['name']} {note}" for note in run["notes"])
    for one in document["evaluations"]:
        yield from (f"note: {one['run']}: {note}" for note in one["notes"])
    for one in document["comparisons"]:
        yield from (f"note: {one['a']} and {one['b']}: {note}" for note in one["notes"])
    first, *others = (run["name"] for run in document["runs"])
    compared = {one["b"] for one in document["comparisons"]}
    for name in [other for other in others if other not in compared]:
        yield f"note: {first} and {name}: no caches of the same name, so nothing is compared; give --cache"
    if any(part["few"] for one in document["evaluations"] for part in one["slices"]):
        yield "note: (few) marks slices of so few prompts that their intervals are too narrow"


def _names(of: Sequence[Mapping[str, Any]], usual: Sequence[str], *, asked: bool) -> list[str]:
    """The figures to show, of those that at least one has."""
    there = list(dict.fromkeys(name for one in of for name in one["figures"]))
    if asked:
        return there
    return [name for name in usual if name in there]


def _table(first: str, *headings: str, title: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=_plain(title), title_justify="left")
    table.add_column(first)
    for heading in headings:
        table.add_column(_plain(heading), justify="right" if heading != "run" else "left")
    return table


def _with_interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return number(estimate["value"])
    return f"{number(estimate['value'])} \\[{number(estimate['low'])}, {number(estimate['high'])}]"


def number(value: float | None, digits: int = 4) -> str:
    """A figure with as many digits as it deserves."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
