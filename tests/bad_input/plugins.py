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
    Case(
        "a misspelt weighting",
        "tdpo fit --plugin dpo --weighting malows",
        "did you mean 'mallows'",
    ),
    Case("a weighting of what has no margin", "tdpo fit --plugin orpo --weighting mallows", "has no margin"),
    Case(
        "weights of tokens for what reads none",
        "tdpo fit --plugin simpo --weighting decay",
        "which --plugin simpo does not read",
    ),
    Case(
        "an objective that weighs tokens, without weights",
        "tdpo fit --plugin tis_dpo",
        "add --weighting tis",
    ),
    Case(
        "a weighting whose scores are not cached",
        "tdpo fit --plugin dpo --weighting tis",
        "--positive MODEL --negative MODEL",
    ),
    Case(
        "a weight that is no number",
        "tdpo fit --plugin dpo --plugin sft=lots",
        "expected NAME or NAME=WEIGHT",
    ),
    Case("an objective twice", "tdpo fit --plugin dpo --plugin dpo", "given twice"),
    Case(
        "an option that two objectives have",
        "tdpo fit --plugin sft --plugin dpo --plugin ipo --set beta=1",
        "say dpo.beta or ipo.beta",
    ),
    Case("an option of no one", "tdpo fit --plugin dpo --weighting mallows --set scal=1", "no option of dpo"),
    Case(
        "a word that is none of an option's",
        "tdpo fit --plugin dpo --weighting mallows --set scale=automatic",
        "did you mean 'auto'",
    ),
    Case(
        "a plugin for a newer tdpo",
        FIT,
        "tdpo-extra 1.0 is built for version 2 of the plugin API",
        plugin("TDPO_API = 2\n"),
    ),
    Case(
        "a plugin whose version is no number",
        FIT,
        "which is no whole number",
        plugin("TDPO_API = 'two'\n"),
    ),
    Case("a plugin by a taken name", "tdpo plugins new dpo", "has an objective 'dpo' already"),
    Case("a plugin by no name", "tdpo plugins new 3-losses", "cannot name an objective"),
    Case("a misspelt objective", "tdpo fit --plugin tdpo3", "did you mean 'tdpo2'"),
    Case("a misspelt objective to describe", "tdpo plugins describe tdpo3", "did you mean 'tdpo2'"),
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
