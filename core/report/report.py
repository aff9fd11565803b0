"""``tdpo report``: runs side by side in one page, and the page's charts as pictures."""

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...cache.reader import open_cache
from ..config.report import ReportConfig
from ..errors import ConfigError, TdpoError
from ..options import construct
from ..quiet import quiet_libraries
from ..runs.folder import open_runs
from .curves import curves_section
from .frontier import frontier_section
from .gather import ReportedRun, gather
from .heatmap import heatmap_section
from .overview import overview_section
from .page import Section, chart_library, check_place, write_page
from .pair_figures import Looked, look_at_pairs
from .pairs import pairs_section, rank, to_show
from .png import write_pictures
from .token_scores import RunTokens, score_tokens
from .tokens import default_cache, find_rows, write_tokens

LIMIT = 5_000_000
"""Bytes of a page: more is slow to open, and too much for a mail."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    pictures: list[Path]
    """The charts' files; none without ``png``."""
    notes: list[str]
    """What could not be read, or not be shown, in sentences; the page says so too."""


def report(*run: str | os.PathLike[str], quiet: bool = False, **options: Any) -> Report:
    """Write a page about runs; what ``tdpo report`` does.

    Args:
        run: folders of runs.
        quiet: show no progress, and no notes on stderr.
        options: any other field of :class:`~tdpo.core.config.report.ReportConfig`, such as ``out``.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()
    }
    return run_report(construct(ReportConfig, {"run": [os.fspath(one) for one in run], **given}), quiet=quiet)


def run_report(config: ReportConfig, *, quiet: bool = False) -> Report:
    """Write the page that ``config`` describes. Raises as :func:`report`."""
    if not config.run:
        raise ConfigError("RUN: name the folders of the runs to report on, such as runs/dpo")
    chart_library()
    runs = gather(open_runs(config.run))
    notes = [str(run.run.cut) for run in runs if run.run.cut]
    # What is asked for and is not there is said before any policy is opened.
    sections = [overview_section(runs), curves_section(runs, config.metric), frontier_section(runs)]
    check_place(Path(config.out), "--out")
    if config.png is not None:
        check_place(Path(config.png), "--png", folder=True)
    with quiet_libraries():
        pairs, more = _pair_sections(runs, config, quiet)
    sections += pairs
    page = write_page(config.out, config.title or _title(runs), sections, lead=_lead(runs), notes=notes)
    pictures = []
    if config.png is not None:
        pictures = write_pictures(Path(config.png), sections, kind=config.format, scale=config.scale)
    if (size := page.stat().st_size) > LIMIT:
        more.append(f"{page} has {size / 1e6:.1f} MB: ask for fewer runs, or for some figures with --metric")
    for note in [] if quiet else [*notes, *more]:
        print(f"tdpo: {note}", file=sys.stderr)
    return Report(page, pictures, [*notes, *more])


def _pair_sections(
    runs: Sequence[ReportedRun], config: ReportConfig, quiet: bool
) -> tuple[list[Section], list[str]]:
    """The pairs, as they are distributed and token by token; and what of it could not be had."""
    asked = _asked(runs, config)
    looked = look_at_pairs(runs, config, quiet=quiet)
    ranked = rank(looked.figures)
    if looked.reader is None or not config.pairs:
        return [pairs_section(runs, looked, ranked, {})], looked.notes
    places = {pair: row for row, pair in enumerate(looked.reader.pair_ids())}
    shown = to_show(ranked, places, asked, count=config.show, seed=config.seed)
    scored: list[RunTokens] = []
    for run in runs if shown else []:
        # A policy that could not be scored before has been spoken of.
        if run.label in {one.label for one in looked.figures}:
            try:
                scored.append(_tokens(run, looked, [one.row for one in shown], config))
            except TdpoError as error:
                looked.notes.append(f"{run.label}: is not shown token by token ({error}).")
    if config.tokens is not None:
        write_tokens(config.tokens, scored)
    prompts = {one.pair.pair_id: one.prompt for one in scored[0].pairs} if scored else {}
    heatmap = [heatmap_section(shown, scored)] if scored else []
    return [pairs_section(runs, looked, ranked, prompts), *heatmap], looked.notes


def _asked(runs: Sequence[ReportedRun], config: ReportConfig) -> list[str]:
    """Ids of the pairs that were asked for, checked before any policy is opened."""
    if not config.pair:
        return []
    if not config.pairs:
        raise ConfigError(
            f"--pair {config.pair[0]}: no policy is asked about pairs with --pairs 0; leave it out"
        )
    reader = open_cache(config.cache or default_cache(runs[0].run))
    known = reader.pair_ids()
    return [known[row] for row in find_rows(reader, config.pair)]


def _tokens(run: ReportedRun, looked: Looked, rows: Sequence[int], config: ReportConfig) -> RunTokens:
    scored = score_tokens(run.run, looked.reader, rows, batch_tokens=config.batch_tokens, dtype=config.dtype)
    # The policy's scored forward refers to it: only the collector makes room for the next one.
    gc.collect()
    return replace(scored, name=run.label)


def _title(runs: Sequence[ReportedRun]) -> str:
    return f"Run {runs[0].label}" if len(runs) == 1 else f"{len(runs)} runs compared"


def _lead(runs: Sequence[ReportedRun]) -> Markup:
    names = ", ".join(run.label for run in runs)
    return Markup("{} \N{MIDDLE DOT} made with tdpo {} on {}").format(names, version("tdpo"), date.today())
