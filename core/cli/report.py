"""``tdpo report``: a page about runs."""

from typing import Any

import click

from ..config.report import ReportConfig
from ..options import construct
from .options import given, options_of


@click.command()
@click.argument("run", nargs=-1, required=True, metavar="RUN...")
@options_of(ReportConfig, leave_out=("run",))
def report(run: tuple[str, ...], **options: Any) -> None:
    """Write a page about runs: one file, with curves, frontier, pairs and tokens of all of them together."""
    config = construct(ReportConfig, {**given(options), "run": list(run)}, where="--")
    from ..report.report import run_report

    found = run_report(config)
    click.echo(f"{found.page}: {len(run)} run{'s' if len(run) > 1 else ''}")
    if found.pictures:
        click.echo(f"{config.png}: {len(found.pictures)} charts as {config.format.upper()}")
