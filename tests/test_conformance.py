"""The conformance kit: every built-in passes it, and what is broken fails it for its own reason."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import tdpo
from tdpo.core.registry import objective_class, weighting_class
from tdpo.plugins import tdpo_objectives, tdpo_weightings
from tdpo.testing import ConformanceError, check_objective, check_weighting

VECTORS = {"prompt_embedding": 5, "advantage": 1}


def built_in(name, classes, face):
    # V larger than any entropy of the made-up batches.
    return face(name, vocab_size=1000) if name.startswith("mallows") else classes(name)


@pytest.mark.parametrize("name", sorted(tdpo_objectives()))
def test_every_built_in_objective_passes(name):
    check_objective(built_in(name, objective_class, tdpo.objective), added=VECTORS)


@pytest.mark.parametrize("options", [{"eta": 0.5}, {"transform": "rank_based"}, {"transform": "binary"}])
def test_what_is_needed_may_depend_on_the_options(options):
    if "eta" in options:
        check_objective(tdpo.objective("tis_dpo", **options))
    else:
        check_weighting(tdpo.weighting("tis", **options, top_percent=50.0))


@pytest.mark.parametrize("name", sorted(tdpo_weightings()))
def test_every_built_in_weighting_passes(name):
    check_weighting(built_in(name, weighting_class, tdpo.weighting), added=VECTORS)


@dataclass(frozen=True)
class Sound(tdpo.MarginObjective):
    """A plain logistic loss, from which everything below goes wrong in one way."""

    formula: ClassVar[str] = "-log sigmoid(beta*D)"


def test_a_sound_one_passes():
    check_objective(Sound)
    check_objective(Sound(beta=2.0))


@dataclass(frozen=True)
class Silent(tdpo.MarginObjective):
    formula: ClassVar[str] = "-log sigmoid(beta*D)"


@dataclass(frozen=True)
class NoFormula(tdpo.MarginObjective):
    """Has no formula."""


@dataclass(frozen=True)
class NoHelp(Sound):
    """An option that nothing explains."""

    gamma: float = 1.0


@dataclass(frozen=True)
class NeverChecks(Sound):
    """Its options are taken as they come."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Scalar(Sound):
    """Returns the mean of the batch."""

    def link(self, margin):
        return super().link(margin).mean()


@dataclass(frozen=True)
class Single(Sound):
    """Computes in single precision."""

    def link(self, margin):
        return super().link(margin.float())


@dataclass(frozen=True)
class Attached(Sound):
    """Rewards with their gradient."""

    def __call__(self, chosen, rejected):
        a, b = self.rewards(chosen, rejected)
        return tdpo.PairLoss(self.link(a - b), a, b.detach())


@dataclass(frozen=True)
class Frozen(Sound):
    """No gradient at all."""

    def link(self, margin):
        return super().link(margin).detach()


@dataclass(frozen=True)
class Undeclared(Sound):
    """Reads the KL without saying so."""

    def margin(self, chosen, rejected):
        return super().margin(chosen, rejected) - chosen.sum(chosen.forward_kl)


@dataclass(frozen=True)
class Greedy(Sound):
    """Asks for what it never reads."""

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})


@dataclass(frozen=True)
class Unmasked(Sound):
    """Sums over padding."""

    def reward(self, side):
        return self.beta * side.log_ratio.sum(-1)


@dataclass(frozen=True)
class WrongGradient(Sound):
    """Its backward is not that of its forward."""

    def link(self, margin):
        class Half(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1.0

            @staticmethod
            def backward(ctx, gradient):
                return gradient / 2

        return super().link(Half.apply(margin))


@dataclass(frozen=True)
class Neighbours(Sound):
    """Depends on the others of its batch, and does not say so."""

    def margin(self, chosen, rejected):
        margin = super().margin(chosen, rejected)
        return margin - margin.mean()


@dataclass(frozen=True)
class Placed(Sound):
    """Depends on the place in the batch."""

    def link(self, margin):
        return super().link(margin) * torch.arange(1, len(margin) + 1)


@dataclass(frozen=True)
class Alone(Sound):
    """Says that it depends on the batch, and does not."""

    batch_level: ClassVar[bool] = True


@dataclass(frozen=True)
class Overflowing(Sound):
    """Exponentials of log-ratios."""

    def link(self, margin):
        return torch.log1p(torch.exp(-10 * margin))


@dataclass(frozen=True)
class Unpicklable(Sound):
    """Holds what cannot be copied."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hook", lambda: None)


BROKEN = {
    Silent: "has no docstring",
    NoFormula: "has no `formula`",
    NoHelp: "the option gamma has no help",
    NeverChecks: r"takes beta=0(\.0)?, which it declares out of range",
    Scalar: r"loss of 4 pairs is \[\], not \[4\]",
    Single: "loss of float64 statistics is torch.float32",
    Attached: "chosen_reward has a gradient",
    Frozen: "the loss has no gradient",
    Undeclared: "reads forward_kl without naming it in `needs`",
    Greedy: "names entropy in `needs` and never reads it",
    Unmasked: "the loss changes when padding holds",
    WrongGradient: "the gradient to logp of chosen is not that of the loss",
    Neighbours: "depends on the others of its batch: declare `batch_level",
    Placed: "changes with the order of the batch",
    Alone: "declares itself batch_level, but no pair's loss depends on the others",
    Overflowing: r"the loss is not finite in float32 at log-ratios of -10000|the gradient is not finite",
    Unpicklable: "does not survive pickling",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_fails_for_its_reason(broken):
    with pytest.raises(ConformanceError) as caught:
        check_objective(broken)
    assert re.search(BROKEN[broken], str(caught.value)), caught.value
    assert str(caught.value).startswith(f"{broken.__name__}: ")


def test_what_is_no_objective_fails():
    with pytest.raises(ConformanceError, match=r"is not a subclass of tdpo\.Objective"):
        check_objective(tdpo.Completions)


def test_stop_gradients_are_not_taken_for_wrong_gradients():
    """TDPO2 detaches a KL, WPO computes a weight without gradient: both are as they should be."""
    for name in ("tdpo2", "wpo", "minor_dpo", "dpo_bmc", "kto_batch"):
        check_objective(objective_class(name))


@dataclass(frozen=True)
class SoundWeight(tdpo.Weighting):
    """A constant."""

    formula: ClassVar[str] = "2"

    def pair_scale(self, chosen, rejected):
        return torch.full_like(chosen.sum(chosen.logp), 2.0)


@dataclass(frozen=True)
class Nothing(tdpo.Weighting):
    """Gives nothing."""

    formula: ClassVar[str] = "1"


@dataclass(frozen=True)
class Flat(SoundWeight):
    """A weight of the batch."""

    def pair_scale(self, chosen, rejected):
        return torch.tensor(2.0)


@dataclass(frozen=True)
class Peeking(SoundWeight):
    """Reads what it does not declare."""

    def loss_weight(self, chosen, rejected):
        return chosen.mean(chosen.ref_entropy)


@dataclass(frozen=True)
class Together(SoundWeight):
    """Weights that average 1 over the batch."""

    def loss_weight(self, chosen, rejected):
        weight = chosen.mean(chosen.logp)
        return weight / weight.mean()


@dataclass(frozen=True)
class OverPadding(SoundWeight):
    """A mean over padding."""

    def loss_weight(self, chosen, rejected):
        return chosen.logp.mean(-1)


BROKEN_WEIGHTS = {
    Nothing: "gives nothing",
    Flat: r"pair_scale of 4 pairs is \[\], not \[4\]",
    Peeking: "reads ref_entropy without naming it",
    Together: "loss_weight of a pair depends on the other pairs",
    OverPadding: r"loss_weight changes when padding holds 1000\.0",
}


@pytest.mark.parametrize("broken", BROKEN_WEIGHTS, ids=lambda cls: cls.__name__)
def test_a_broken_weighting_fails_for_its_reason(broken):
    check_weighting(SoundWeight)
    with pytest.raises(ConformanceError, match=BROKEN_WEIGHTS[broken]):
        check_weighting(broken)


def test_the_page_about_plugins_says_what_works(tmp_path, monkeypatch):
    """Every block of code of docs/plugins.md as the file that it says it is; its own test is run."""
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    for place, code in blocks:
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_package.plugin as hooks

    assert hooks.tdpo_objectives() == {"squared": "my_package.objective:Squared"}
    assert hooks.tdpo_weightings() == {"sure": "my_package.weighting:Sure"}
    assert set(hooks.tdpo_statistics()) == {"prompt-embedding", "surprisal"}
    names = {"__name__": "page"}
    exec((tmp_path / "tests" / "test_my_package.py").read_text(), names)
    names["test_they_keep_to_the_contract"]()
    from my_package.weighted import Weighted

    check_objective(Weighted)


def test_the_kit_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_objective(Sound)
