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

SUM = "chosen.sum(chosen.logp)"
PLAIN = f"return PairLoss(-{SUM}, {SUM}.detach(), {SUM}.detach())"


def objective(body=PLAIN, fields="", more=""):
    """A plugin with one objective, ``extra``, whose loss is computed so."""
    return objectives(
        "{'extra': 'tdpo_extra:Extra'}",
        f"""
from dataclasses import dataclass
from typing import ClassVar
import torch
from tdpo import Objective, PairLoss, hyperparameter
@dataclass(frozen=True)
class Extra(Objective):
    '''An objective.'''
    formula: ClassVar = "-logp"
    {fields}
    {more}
    def __call__(self, chosen, rejected):
        {body}
""",
    )


def returning(loss=f"-{SUM}", chosen=f"{SUM}.detach()", rejected=f"{SUM}.detach()", metrics="{}"):
    """A plugin with one objective, ``extra``, that returns these."""
    return objective(f"return PairLoss({loss}, {chosen}, {rejected}, {metrics})")


def weighting(body):
    """A plugin with one weighting, ``extra``."""
    return plugin(
        f"""
from dataclasses import dataclass
from typing import ClassVar
import torch
from tdpo import Weighting, hookimpl
@hookimpl
def tdpo_weightings():
    return {{'extra': 'tdpo_extra:Extra'}}
@dataclass(frozen=True)
class Extra(Weighting):
    '''A weighting.'''
    formula: ClassVar = "1"
    {body}
"""
    )


WEIGH = "tdpo fit --plugin dpo --weighting extra"
AUTHOR = r"no model was loaded\); update or uninstall tdpo-extra 1\.0: its author finds more with "
OBJECTIVE = r"^tdpo: objective 'extra' of tdpo-extra 1\.0: "
BETA = 'beta: float = hyperparameter(0.1, "strength", gt=0)'
WIDTH = ((r"\[2, \d+\]", "[2, T]"),)

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
        "a plugin that gives a command of tdpo's",
        "tdpo --help",
        "tdpo-extra 1.0 gives a command 'fit', which tdpo has itself",
        plugin("from tdpo import hookimpl\n@hookimpl\ndef tdpo_commands():\n    return {'fit': 'own:fit'}\n"),
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
    Case(
        "an objective whose loss is one number",
        FIT,
        OBJECTIVE + r"loss of 2 pairs is \[\], not \[2\] .*" + AUTHOR + "tdpo.testing.check_objective",
        returning(loss=f"-{SUM}.mean()"),
    ),
    Case(
        "an objective whose loss is no tensor",
        FIT,
        OBJECTIVE + r"loss of 2 pairs is float, not \[2\]",
        returning(loss="0.5"),
    ),
    Case(
        "an objective that returns a tensor",
        FIT,
        OBJECTIVE + "returns Tensor, not a tdpo.PairLoss",
        objective(f"return -{SUM}"),
    ),
    Case(
        "an objective whose loss is not finite",
        FIT,
        OBJECTIVE + "the loss of two pairs at ordinary log-probabilities is NaN or infinite",
        returning(loss=f"{SUM}.log()"),
    ),
    Case(
        "an objective whose gradient is not finite",
        FIT,
        OBJECTIVE + "the gradient of two pairs at ordinary log-probabilities is NaN or infinite",
        returning(loss=f"(0 * {SUM}).abs().sqrt()"),
    ),
    Case(
        "an objective without a gradient",
        FIT,
        OBJECTIVE + "the loss has no gradient",
        returning(loss=f"-{SUM}.detach()"),
    ),
    Case(
        "an objective whose rewards are those of tokens",
        FIT,
        OBJECTIVE + r"chosen_reward of 2 pairs is \[2, \d+\], not \[2\]",
        returning(chosen="chosen.logp.detach()"),
        hide=WIDTH,
    ),
    Case(
        "an objective whose reward has a gradient",
        FIT,
        OBJECTIVE + "rejected_reward has a gradient: detach",
        returning(rejected=SUM),
    ),
    Case(
        "an objective with a metric of tokens",
        FIT,
        OBJECTIVE + r"the metric each is \[2, \d+\], neither \[2\] nor a scalar",
        returning(metrics="{'each': chosen.logp.detach()}"),
        hide=WIDTH,
    ),
    Case(
        "an objective with a word among its metrics",
        FIT,
        OBJECTIVE + r"the metric mood is str, neither \[2\] nor a scalar tensor",
        returning(metrics="{'mood': 'fine'}"),
    ),
    Case(
        "an objective that fails",
        FIT,
        OBJECTIVE + "fails with KeyError: 'gone'",
        objective("return {}['gone']"),
    ),
    Case(
        "an objective that reads what it does not declare",
        FIT,
        OBJECTIVE + "fails with ValueError: the statistic 'novelty' was not read; name it in .*needs",
        returning(loss="-chosen.sum(chosen.logp * chosen.added('novelty'))"),
    ),
    Case(
        "an objective that observes nothing and names something",
        FIT,
        OBJECTIVE + "observe gives nothing, and `running` names reward",
        objective(more='running: ClassVar = frozenset({"reward"})'),
    ),
    Case(
        "an option of a plugin that is out of range",
        FIT + " --set beta=-1",
        r"beta=-1\.0 is out of range: it must be > 0",
        objective(fields=BETA),
    ),
    Case(
        "a word where an option of a plugin is a number",
        FIT + " --set beta=strong",
        "extra: beta: expected a number, not 'strong'",
        objective(fields=BETA),
    ),
    Case(
        "an option that a plugin does not have",
        FIT + " --set betta=1",
        "extra: betta is not an option; did you mean 'beta'",
        objective(fields=BETA),
    ),
    Case(
        "a plugin whose default is a word where a number belongs",
        FIT,
        OBJECTIVE + "fails with TypeError",
        objective(
            body="return PairLoss(-self.beta * chosen.sum(chosen.logp), None, None)",
            fields='beta: float = hyperparameter("0.1", "strength", gt=0)',
        ),
    ),
    Case(
        "a weighting whose weights are one number",
        WEIGH,
        r"^tdpo: weighting 'extra' of tdpo-extra 1\.0: pair_scale of 2 pairs is \[\], not \[2\] .*" + AUTHOR,
        weighting("def pair_scale(self, chosen, rejected): return torch.tensor(2.0)"),
    ),
    Case(
        "a weighting with weights of one side",
        WEIGH,
        r"token_weights of rejected of 2 pairs is NoneType, not \[2, \d+\]",
        weighting("def token_weights(self, chosen, rejected): return torch.ones_like(chosen.logp)"),
        hide=WIDTH,
    ),
    Case(
        "a weighting that gives nothing",
        WEIGH,
        "gives nothing: override token_weights, pair_scale or loss_weight",
        weighting("pass"),
    ),
    Case(
        "a weighting that is not finite",
        WEIGH,
        "loss_weight is not finite",
        weighting("def loss_weight(self, chosen, rejected): return chosen.sum(chosen.logp).log()"),
    ),
)
