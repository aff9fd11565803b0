"""``tdpo cache plan``: what a build will take."""

import json
from typing import Any

import click

from ...config.build import BuildConfig
from ...config.file import build_config
from ..options import config_option, config_path, given, options_of


@click.command()
@config_option
@options_of(BuildConfig)
@click.option(
    "--sample", default=None, metavar="N", type=int, help="tokenise only the first N rows and extrapolate"
)
@click.option(
    "--tokens-per-second",
    default=None,
    metavar="X",
    type=float,
    help="speed of scoring [default: told from a matrix product on this machine]",
)
@click.option("--json", "as_json", is_flag=True, help="the estimates, for a program")
def plan(
    config: str | None, sample: int | None, tokens_per_second: float | None, as_json: bool, **options: Any
) -> None:
    """Estimate what a build takes, before anything is loaded: tokens, bytes, memory and time.

    Takes the options of `tdpo cache build`. All rows are tokenised, unless --sample says otherwise; the
    reference's weights are not opened.
    """
    resolved = build_config(given(options), config_path(config))
    from ...caching.planning.plan import run_plan

    found = run_plan(resolved, sample=sample, tokens_per_second=tokens_per_second)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
