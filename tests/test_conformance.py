"""The conformance kit: every built-in passes it, and what is broken fails it for its own reason."""

import re
import warnings
from dataclasses import dataclass
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


@pytest.mark.parametrize(
    "options",
    [{"eta": 0.5}, {"transform": "rank_based"}, {"transform": "binary"}, {"transform": "random"}],
)
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
    check_objective(Drawing)
    check_objective(Remembering)


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


@dataclass(frozen=True)
class Astray(Sound):
    """Watches what no one logs."""

    watch: ClassVar[str] = "``rewards/margins`` grows and ``rewards/margin`` too."


@dataclass(frozen=True)
class Listed(Sound):
    """Watches figures by a list."""

    watch: ClassVar[str] = ("rewards/margins",)


@dataclass(frozen=True)
class Moody(Sound):
    """A metric that is a word."""

    def __call__(self, chosen, rejected):
        found = super().__call__(chosen, rejected)
        return tdpo.PairLoss(found.loss, found.chosen_reward, found.rejected_reward, {"mood": "fine"})


@dataclass(frozen=True)
class Bare(Sound):
    """Returns a tensor."""

    def __call__(self, chosen, rejected):
        return super().__call__(chosen, rejected).loss


@dataclass(frozen=True)
class Restless(Sound):
    """Draws from torch's state."""

    def margin(self, chosen, rejected):
        return super().margin(chosen, rejected) * torch.rand(())


@dataclass(frozen=True)
class Wasteful(Sound):
    """Draws from torch's state what it does not use."""

    def margin(self, chosen, rejected):
        torch.rand(())
        return super().margin(chosen, rejected)


@dataclass(frozen=True)
class Drawing(Sound):
    """Drops tokens at random, as it should."""

    needs: ClassVar[frozenset[str]] = frozenset({"draw_seed"})
    watch: ClassVar[str] = "``rewards/margins`` grows, ``loss/drawing`` falls."

    def reward(self, side):
        return self.beta * side.sum(torch.where(side.uniform() < 0.5, side.log_ratio, 0.0))


@dataclass(frozen=True)
class Gambling(Drawing):
    """Drops tokens without saying so."""

    needs: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Seeded(Sound):
    """Asks for draws that it never makes."""

    needs: ClassVar[frozenset[str]] = frozenset({"draw_seed"})


@dataclass(frozen=True)
class Remembering(Sound):
    """Margins against their mean over the run."""

    running: ClassVar[frozenset[str]] = frozenset({"margin"})
    watch: ClassVar[str] = "``remembered`` grows."

    def observe(self, chosen, rejected):
        return {"margin": super().margin(chosen, rejected)}

    def margin(self, chosen, rejected):
        return super().margin(chosen, rejected) - chosen.running["margin"]

    def __call__(self, chosen, rejected):
        found = super().__call__(chosen, rejected)
        figures = {"remembered": chosen.running["margin"]}
        return tdpo.PairLoss(found.loss, found.chosen_reward, found.rejected_reward, figures)


@dataclass(frozen=True)
class Blank(Remembering):
    """Observes nothing."""

    def observe(self, chosen, rejected):
        return {}


@dataclass(frozen=True)
class Averaging(Remembering):
    """Observes a mean of its batch."""

    def observe(self, chosen, rejected):
        return {"margin": super().observe(chosen, rejected)["margin"].mean()}


@dataclass(frozen=True)
class Relative(Remembering):
    """Observes what a pair is among the others."""

    def observe(self, chosen, rejected):
        found = super().observe(chosen, rejected)["margin"]
        return {"margin": found * len(found)}


@dataclass(frozen=True)
class Beyond(Remembering):
    """Observes padding."""

    def observe(self, chosen, rejected):
        return {"margin": torch.where(chosen.logp.isnan(), 1.0, chosen.logp).sum(-1)}


@dataclass(frozen=True)
class Deaf(Remembering):
    """Never reads what it asks for."""

    watch: ClassVar[str] = ""

    def margin(self, chosen, rejected):
        return tdpo.MarginObjective.margin(self, chosen, rejected)

    def __call__(self, chosen, rejected):
        return tdpo.MarginObjective.__call__(self, chosen, rejected)


@dataclass(frozen=True)
class Curious(Sound):
    """Reads a mean that it does not ask for."""

    def margin(self, chosen, rejected):
        return super().margin(chosen, rejected) - chosen.running.get("margin", 0.0)


BROKEN = {
    Astray: "`watch` names ``rewards/margin``, which no run with it logs",
    Listed: "`watch` is tuple, not text",
    Moody: r"the metric mood is str, neither \[4\] nor a scalar tensor",
    Bare: r"returns Tensor, not a tdpo\.PairLoss",
    Restless: "draws from torch's random state",
    Wasteful: "draws from torch's random state",
    Gambling: "reads draw_seed without naming it in `needs`",
    Seeded: "names draw_seed in `needs` and never reads it",
    Blank: "observe gives nothing, and `running` names margin",
    Averaging: r"observe gives margin as \[\], not numbers \[n\]",
    Relative: "observe gives a margin of a pair that depends on the others of its batch",
    Beyond: "observe gives a margin that changes when padding holds nan",
    Deaf: "names margin in `running` and its loss never reads the mean",
    Curious: "reads the running mean of margin without naming it in `running`",
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


@pytest.mark.parametrize(
    ("name", "options"),
    [("sampo", {"expected": True}), ("bco_pair", {"shift": "none"}), ("bco_pair", {"reward_shift": 0.3})],
)
def test_other_forms_that_draw_or_remember_nothing_pass_too(name, options):
    check_objective(tdpo.objective(name, **options))


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


@dataclass(frozen=True)
class RestlessWeight(SoundWeight):
    """Draws from torch's state."""

    def pair_scale(self, chosen, rejected):
        return super().pair_scale(chosen, rejected) + torch.rand(())


@dataclass(frozen=True)
class OneSided(SoundWeight):
    """Weights of the tokens of one side."""

    def token_weights(self, chosen, rejected):
        return torch.ones_like(chosen.logp)


@dataclass(frozen=True)
class AstrayWeight(SoundWeight):
    """Watches what no one logs."""

    watch: ClassVar[str] = "``weights/token`` is 1."


BROKEN_WEIGHTS = {
    RestlessWeight: "draws from torch's random state",
    OneSided: r"token_weights of rejected of 4 pairs is NoneType, not \[4, 6\]",
    AstrayWeight: "`watch` names ``weights/token``, which no run with it logs",
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


def test_the_kit_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_objective(Sound)
