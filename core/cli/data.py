"""``tdpo data``: making preference data."""

from typing import Any

import click

from ..config.sample import SampleConfig
from ..options import construct
from .options import given, options_of


@click.group()
def data() -> None:
    """Make preference data."""


@data.command()
@options_of(SampleConfig)
def sample(**options: Any) -> None:
    """Draw completions of prompts from a model, score them, and write pairs whose scores are far apart."""
    config = construct(SampleConfig, given(options), where="--")
    from ..sampling.sample import run_sample

    result = run_sample(config)
    click.echo(
        f"{result.out}: {result.pairs:,} pairs of {result.prompts:,} prompts; all scores in {result.scored}"
    )
    if not result.pairs:
        click.echo(
            "no two scores of a prompt are far enough apart; lower --threshold, or --tau for small scores"
        )
