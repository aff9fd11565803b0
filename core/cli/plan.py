"""``tdpo plan``: what memory a fit will take."""

import json
from typing import Any

import click

from ..config.fit import FitConfig
from .options import config_option, config_path, given, options_of


@click.command()
@config_option
@options_of(FitConfig, leave_out=("training",))
@click.option(
    "--gpu-memory",
    default=None,
    metavar="SIZE",
    help="size of the GPU to plan for, such as 24GB or 80GiB [default: of this machine's, or of what main "
    "memory is free where there is none]",
)
@click.option("--json", "as_json", is_flag=True, help="the estimates, for a program")
def plan(config: str | None, gpu_memory: str | None, as_json: bool, **options: Any) -> None:
    """Estimate what memory a fit takes, before anything is loaded, and name the cheapest options that fit.

    Takes the options of `tdpo fit`; --plugin may be left out. The model's weights are not opened: a folder
    with its config.json and its tokenizer will do.
    """
    from ..training.planning.plan import planned_config, run_plan

    found = run_plan(planned_config(given(options), config_path(config)), gpu_memory=gpu_memory)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
