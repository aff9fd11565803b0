"""``tdpo cache add``: further statistics beside a finished cache."""

import json
from dataclasses import asdict
from typing import Any

import click

from ...config.build import AddConfig
from ...errors import ConfigError
from ...options import construct
from ..options import given, options_of


@click.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@options_of(AddConfig, leave_out=("cache",))
@click.option("--json", "as_json", is_flag=True, help="what was added, for a program")
def add(folder: str, as_json: bool, **options: Any) -> None:
    """Score further statistics over a finished cache, beside its shards.

    \b
      --positive MODEL --negative MODEL               token scores from two models
      --positive-prompt TEXT --negative-prompt TEXT   token scores from one, under two system prompts
      --ref MODEL                                     a second reference
      --head K --tail M                               a larger sample of the same reference
      --statistic NAME                                a statistic of a plugin

    The base is never rewritten. The same command goes on with one that was cut off.
    """  # noqa: D301 (click wants the backspace itself)
    if options["name"] is None:
        raise ConfigError("--name NAME must be given: it is how fit finds the scores")
    config = construct(AddConfig, {**given(options), "cache": folder})
    from ...caching.adding.add import describe_scores, run_add

    run_add(config)
    added = next(one for one in describe_scores(folder) if one.name == config.name)
    click.echo(json.dumps(asdict(added), indent=2) if as_json else f"{folder}: {added}")
