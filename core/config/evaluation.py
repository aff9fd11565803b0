"""Which caches a fit is evaluated on, what its figures are called, and which of them chooses the best."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..errors import ConfigError
from ..runs.figures import larger_is_better
from .fit import FitConfig

_NAMED = re.compile(r"([A-Za-z0-9][\w-]*)=(.+)")
# Learning-rate schedules of transformers.
_FOLLOW_A_FIGURE = ("reduce_lr_on_plateau", "greedy")


def eval_caches(given: Sequence[str]) -> dict[str, str]:
    """Name -> place of each value of ``--eval-cache``, in their order.

    A value is a place, or ``NAME=PLACE``. A single one without a name is named ``""``: its figures are called
    ``eval_loss`` and so on, those of a cache with a name ``eval_NAME_loss``. Of several, those without a name
    take their folder's.

    Raises:
        ConfigError: two have the same name.
    """
    found: dict[str, str] = {}
    for value in given:
        named = _NAMED.fullmatch(value)
        name, place = named.groups() if named else ("", value)
        if not named and len(given) > 1:
            name = re.sub(r"[^\w-]+", "-", PurePosixPath(place).name).strip("-")
        if name in found:
            raise ConfigError(
                f"--eval-cache {value}: another one is named {name!r}; give each its name: "
                f"--eval-cache NAME={place}"
            )
        found[name] = place
    return found


def figure_prefix(name: str) -> str:
    """What stands before the figures of the evaluation cache ``name``: ``eval_`` or ``eval_NAME_``."""
    return f"eval_{name}_" if name else "eval_"


@dataclass(frozen=True)
class Selection:
    """The figure by which a run's best checkpoint is chosen."""

    figure: str
    """As it is logged, such as ``eval_loss``."""
    larger: bool
    """Whether a larger value is better."""


def selection(config: FitConfig) -> Selection | None:
    """What ``--best`` asks for; None where nothing is.

    Whether the objective logs such a figure shows at the first evaluation.

    Raises:
        ConfigError: there is no evaluation that could give it; it is not known whether a larger value is
            better; checkpoints would not be those that are evaluated; or --early-stopping is without it.
    """
    if config.best is None:
        if config.early_stopping is not None:
            raise ConfigError(
                "--early-stopping needs the figure that must go on improving: --best METRIC, such as "
                "--best eval_loss"
            )
        return None
    if not config.eval_cache:
        raise ConfigError(f"--best {config.best}: nothing is evaluated; give --eval-cache DIR")
    if config.save_steps and config.eval_steps and config.save_steps != config.eval_steps:
        raise ConfigError(
            f"--best chooses among checkpoints that were evaluated: --save-steps {config.save_steps} and "
            f"--eval-steps {config.eval_steps} must be the same; leave one out"
        )
    figure = config.best if config.best.startswith("eval_") else f"eval_{config.best}"
    prefixes = [figure_prefix(name) for name in eval_caches(config.eval_cache)]
    prefix = max((each for each in prefixes if figure.startswith(each)), key=len, default=None)
    if prefix is None:
        bare = figure.removeprefix("eval_")
        raise ConfigError(
            f"--best {config.best}: of which evaluation cache? Their figures are called "
            + " or ".join(each + bare for each in prefixes)
        )
    if config.best_mode != "auto":
        return Selection(figure, config.best_mode == "max")
    larger = larger_is_better(figure.removeprefix(prefix))
    if larger is not None:
        return Selection(figure, larger)
    raise ConfigError(
        f"--best {config.best}: it is not known whether a larger or a smaller value is better; say so with "
        "--best-mode max or min"
    )


def check_evaluation(config: FitConfig) -> None:
    """Whether the options of evaluation go together.

    Raises:
        ConfigError: they do not; says which.
    """
    names = eval_caches(config.eval_cache)
    for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
        if name in config.training:
            raise ConfigError(f"training.{name}: say --best METRIC, and --best-mode, instead")
    if selection(config) is None and config.schedule in _FOLLOW_A_FIGURE and "" not in names:
        raise ConfigError(
            f"--schedule {config.schedule} follows a figure of the evaluations: give --eval-cache DIR, and "
            "--best METRIC to say which figure"
        )
    if config.samples and not config.eval_cache:
        raise ConfigError(
            f"--samples {config.samples}: the prompts are those of an evaluation cache; give --eval-cache DIR"
        )
