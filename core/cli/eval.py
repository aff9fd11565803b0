"""``tdpo eval``: the figures of finished runs."""

import json
import sys
from typing import Any

import click

from ..config.eval import EvalConfig
from ..options import construct
from .options import given, options_of


@click.command("eval")
@click.argument("run", nargs=-1, required=True, metavar="RUN...")
@options_of(EvalConfig, leave_out=("run",))
@click.option("--json", "as_json", is_flag=True, help="the content of eval.json, for a program")
def evaluate(run: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Evaluate runs, or models, on cached pairs; several are compared with the first.

    Exits with 1 where a condition of --require does not hold.
    """
    config = construct(EvalConfig, {**given(options), "run": list(run)}, where="--")
    from ..evaluating.run import run_eval
    from ..evaluating.show import show

    found = run_eval(config, quiet=as_json)
    if as_json:
        click.echo(json.dumps(found.document, indent=2, ensure_ascii=False))
    else:
        show(found.document, asked=bool(config.metric))
        if found.out is not None:
            files = ["eval.json", "pairs.parquet", *(["samples.parquet"] if config.generate else [])]
            click.echo(f"{found.out}: {', '.join(files[:-1])} and {files[-1]}")
    if found.failed:
        sys.exit(1)
