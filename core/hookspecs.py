"""The plugin contract: every hook tdpo calls. A distribution offers them in the entry-point group ``tdpo``.

Hooks return names mapped to ``"module:attribute"`` strings. They are imported only when a run names them,
so that listing plugins imports no torch.
"""

import pluggy

hookspec = pluggy.HookspecMarker("tdpo")
hookimpl = pluggy.HookimplMarker("tdpo")


@hookspec
def tdpo_objectives() -> dict[str, str]:  # type: ignore[empty-body]
    """Objectives: name (as in ``--plugin NAME``) -> ``"module:class"``, a subclass of ``tdpo.Objective``."""


@hookspec
def tdpo_statistics() -> dict[str, str]:  # type: ignore[empty-body]
    """Statistics: name (as in ``--statistic NAME``) -> ``"module:class"``, a ``tdpo.Statistic``."""


@hookspec
def tdpo_commands() -> dict[str, str]:  # type: ignore[empty-body]
    """Commands: name (as in ``tdpo NAME``) -> ``"module:command"``, a ``click.Command``."""
