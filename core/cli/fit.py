"""``tdpo fit``: train a policy from a cache."""

from typing import Any

import click

from ..config.file import fit_config
from ..config.fit import FitConfig
from .options import config_option, config_path, given, options_of

_SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}


@click.command()
@config_option
@options_of(FitConfig, leave_out=("training",))
def fit(config: str | None, **options: Any) -> None:
    """Train a policy from a cache, with only the policy in memory.

    Hyperparameters of the objective are given with --set; `tdpo plugins describe NAME` lists them.
    """
    resolved = fit_config(given(options), config_path(config))
    from ..config.evaluation import eval_caches, figure_prefix
    from ..fit import run_fit
    from ..runs.output import is_first_process

    result = run_fit(resolved)
    if not is_first_process():
        return
    figures = result.metrics
    click.echo(f"{result.output}: trained for {result.steps:,} steps")
    if result.best_step is not None:
        click.echo(f"  kept the policy of step {result.best_step:,}, the best by {resolved.best}")
    parts = [("", "training")]
    parts += [(figure_prefix(name), name or "evaluation") for name in eval_caches(resolved.eval_cache)]
    for prefix, label in parts:
        shown = [
            f"{word} {figures[prefix + name]:.4g}"
            for name, word in _SHOWN.items()
            if prefix + name in figures
        ]
        if shown:
            click.echo(f"  {label:<11}{', '.join(shown)}")
