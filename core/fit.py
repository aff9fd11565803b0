"""Stage two: train a policy from a cache, with only the policy in memory."""

import os
from collections.abc import Sequence
from typing import Any

from .config.file import fit_config
from .config.fit import FitConfig
from .fit_request import open_request
from .quiet import quiet_libraries
from .training.launch import as_launched, is_launched, launch
from .training.result import FitResult


def fit(
    plugin: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **options: Any,
) -> FitResult:
    """Train a policy from a cache; what ``tdpo fit`` does.

    Args:
        plugin: the objective's name; of several, whose weighted sum is trained, ``NAME`` or ``NAME=WEIGHT``.
        cache: the cache's folder.
        config: a ``tdpo.yaml`` whose ``fit`` and ``training`` sections hold options that are not given here.
        quiet: print nothing.
        options: any other field of :class:`~tdpo.core.config.fit.FitConfig`, such as ``model``, ``output``,
            ``set={"beta": 0.1}`` or ``training={"weight_decay": 0.01}``.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = dict(options)
    if plugin is not None:
        given["plugin"] = plugin
    if cache is not None:
        given["cache"] = os.fspath(cache)
    return run_fit(fit_config(given, config), quiet=quiet)


def run_fit(config: FitConfig, *, quiet: bool = False) -> FitResult:
    """Run the fit that ``config`` describes. Raises as :func:`fit`."""
    request = open_request(as_launched(config))

    from .training.sharding import Sharding

    sharding = Sharding.asked(request.config)
    if not is_launched(request.config):
        return FitResult(**launch(request.config, quiet=quiet))

    from .training.run import run

    with quiet_libraries():
        return run(request, sharding, quiet=quiet)
