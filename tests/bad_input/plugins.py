"""Plugins."""

import importlib
import sys

from .case import Case


def plugin(source, name="tdpo-extra"):
    """An installed distribution whose plugin module has this source."""
    module = name.replace("-", "_")

    def prepare(world):
        from tdpo.core.registry import plugin_manager

        info = f"packages/{module}-1.0.dist-info"
        world.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        world.write(f"{info}/entry_points.txt", f"[tdpo]\nextra = {module}\n")
        world.write(f"packages/{module}.py", source)
        sys.path.insert(0, str(world.folder / "packages"))
        importlib.invalidate_caches()
        plugin_manager.cache_clear()

        def leave():
            sys.path.remove(str(world.folder / "packages"))
            sys.modules.pop(module, None)
            importlib.invalidate_caches()
            plugin_manager.cache_clear()

        world.during.callback(leave)
        world.during.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
        sys.dont_write_bytecode = True

    return prepare


def objectives(mapping, more=""):
    return plugin(
        f"from tdpo import hookimpl\n@hookimpl\ndef tdpo_objectives():\n    return {mapping}\n{more}"
    )


FIT = "tdpo fit --plugin extra"
NEEDY = """
from dataclasses import dataclass
from typing import ClassVar
from tdpo import Objective, PairLoss
@dataclass(frozen=True)
class Extra(Objective):
    '''An objective.'''
    needs: ClassVar = frozenset({"entropie"})
    formula: ClassVar = "0"
    paper: ClassVar = ""
    def __call__(self, chosen, rejected):
        return PairLoss(chosen.sum(chosen.logp), chosen.sum(chosen.logp), chosen.sum(chosen.logp), {})
"""

CASES = (
    Case("a misspelt objective", "tdpo fit --plugin tdpo3", "did you mean 'tdpo2'"),
    Case("a misspelt objective to describe", "tdpo plugins describe dop", "did you mean 'dpo'"),
    Case(
        "a plugin that does not import",
        FIT,
        "tdpo-extra 1.0 fails to load: .*TDPO_PLUGINS=off",
        plugin("import nonesuch"),
    ),
    Case(
        "a plugin that gives a built-in's name",
        FIT,
        "'dpo' is given by both tdpo .* and tdpo-extra 1.0",
        objectives("{'dpo': 'tdpo_extra:Extra'}"),
        hide=((r"both tdpo [\w.+]+ and", "both tdpo VERSION and"),),
    ),
    Case(
        "a plugin that names code it lacks",
        FIT,
        "does not load from 'tdpo_extra:Gone'",
        objectives("{'extra': 'tdpo_extra:Gone'}"),
    ),
    Case(
        "a plugin that gives code, not its name",
        FIT,
        "must map to 'module:attribute'",
        objectives("{'extra': len}"),
    ),
    Case(
        "a plugin whose objective is none",
        FIT,
        "is not a tdpo.Objective",
        objectives("{'extra': 'tdpo_extra:hookimpl'}"),
    ),
    Case(
        "a plugin with a misspelt hook",
        FIT,
        "tdpo-extra 1.0 fails to load",
        plugin("from tdpo import hookimpl\n@hookimpl\ndef tdpo_objektives():\n    return {}\n"),
    ),
    Case(
        "an objective that needs what nothing computes",
        FIT,
        "needs the statistic 'entropie'",
        objectives("{'extra': 'tdpo_extra:Extra'}", NEEDY),
    ),
)
