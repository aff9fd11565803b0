"""The plugin contract: every hook tdpo calls. A distribution offers them in the entry-point group ``tdpo``.

Hooks return names mapped to ``"module:attribute"`` strings. They are imported only when a run names them,
so that listing plugins imports no torch.
"""

import pluggy

API_VERSION = 1
"""Of the hooks and of what tdpo exports for plugins: grows when a plugin for the new one could not run with
the old one. A plugin module says which it is built for with ``TDPO_API = 1``."""

hookspec = pluggy.HookspecMarker("tdpo")
hookimpl = pluggy.HookimplMarker("tdpo")


@hookspec
def tdpo_objectives() -> dict[str, str]:  # type: ignore[empty-body]
    """Objectives: name (as in ``--plugin NAME``) -> ``"module:class"``, a subclass of ``tdpo.Objective``."""


@hookspec
def tdpo_weightings() -> dict[str, str]:  # type: ignore[empty-body]
    """Weightings: name (as in ``--weighting NAME``) -> ``"module:class"``, a ``tdpo.Weighting``."""


@hookspec
def tdpo_statistics() -> dict[str, str]:  # type: ignore[empty-body]
    """Statistics: name (as in ``--statistic NAME``) -> ``"module:class"``, a ``tdpo.Statistic``."""


@hookspec
def tdpo_commands() -> dict[str, str]:  # type: ignore[empty-body]
    """Commands: name (as in ``tdpo NAME``) -> ``"module:command"``, a ``click.Command``."""
