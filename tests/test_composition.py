"""Sums of objectives, and weightings on any margin: golden weights, the whole grid, what is refused."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from golden import EXTRA, SIDES, sides, vectors

import tdpo
from tdpo.core.composing import compose
from tdpo.core.objective import CacheFacts, MarginObjective
from tdpo.plugins import tdpo_objectives, tdpo_weightings

WEIGHTINGS = sorted(tdpo_weightings())
OF_TOKENS = ("tis", "decay", "bmc", "ld", "sampo")
MARGINS = sorted(n for n in tdpo_objectives() if isinstance(tdpo.objective(n), MarginObjective))
V = {"vocab_size": 11}


def facts():
    return CacheFacts(11, lambda names: iter(()))


@pytest.mark.parametrize("golden", vectors()["tis_weights"], ids=lambda g: f"{g['batch']}-{g['kind']}")
def test_tis_weights_equal_the_golden_ones(golden):
    kind = golden["kind"]
    options = {
        "paper": {},
        "paper_k2_mu05_wide": {"k": 2.0, "mu": 0.5, "low": -2.0, "high": 2.0},
        "binary_50": {"transform": "binary", "top_percent": 50},
    }.get(kind, {"transform": kind})
    made = sides(golden["batch"])
    found = tdpo.weighting("tis", **options).token_weights(*made)
    for side, got, completions in zip(SIDES, found, made, strict=True):
        for row, want, mask in zip(got, golden["weights"], completions.mask, strict=True):
            np.testing.assert_allclose(row[mask].detach(), want[side], rtol=1e-12)


def test_the_last_token_can_be_given_a_weight_of_its_own():
    chosen, rejected = sides("main")
    weights = tdpo.weighting("tis", eos_weight=0.0).token_weights(chosen, rejected)
    for side, weight in zip((chosen, rejected), weights, strict=True):
        for row, length in zip(weight, side.length.tolist(), strict=True):
            assert row[length - 1] == 0
            assert (row[: length - 1] > 0).all()


@pytest.mark.parametrize(
    ("plain", "weighting", "same"),
    [
        ("dpo", ("mallows", V | {"scale": 0.5}), ("mallows_theta", V | {"scale": 0.5})),
        ("dpo", ("decay", {"gamma": 0.9}), ("d2po_decay", {"gamma": 0.9})),
        ("dpo", ("ld", {"alpha": 0.3}), ("ld_dpo", {"alpha": 0.3})),
        ("dpo", ("sampo", {}), ("sampo", {})),
        ("dpo", ("sampo", {"expected": True}), ("sampo", {"expected": True})),
        ("dpo", ("wpo", {}), ("wpo", {})),
        ("dpo", ("bmc", {"cap": 3.0}), ("dpo_bmc", {"cap": 3.0})),
    ],
)
def test_a_weighting_on_dpo_is_the_objective_that_the_paper_makes_of_it(plain, weighting, same):
    name, options = weighting
    options = {f"{name}.{key}": value for key, value in options.items()} | {f"{plain}.beta": 0.3}
    a, b = sides("main"), sides("main")
    got = compose([plain], [name], options)(*a).loss
    want = tdpo.objective(same[0], beta=0.3, **same[1])(*b).loss
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    got.sum().backward()
    want.sum().backward()
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours.logp.grad, theirs.logp.grad, rtol=1e-12, atol=1e-15)


def composed(name, weighting):
    return compose([name], [weighting], {f"{weighting}.vocab_size": 11} if weighting == "mallows" else {})


def refused(name, weighting):
    """Weights of tokens say nothing to an objective that reads no token's log-ratio."""
    return name in ("simpo", "mrpo") and weighting in OF_TOKENS


@pytest.mark.parametrize(("name", "weighting"), [*product(MARGINS, WEIGHTINGS)])
def test_every_margin_takes_every_weighting(name, weighting):
    """Finite, and gradients as by finite differences with the weights held fast; or refused with a reason."""
    if refused(name, weighting):
        with pytest.raises(
            tdpo.TdpoError, match=f"--weighting {weighting}: .* --plugin {name} does not read"
        ):
            composed(name, weighting)
        return
    if name == "tis_dpo" and weighting not in OF_TOKENS:
        with pytest.raises(tdpo.TdpoError, match="--plugin tis_dpo weighs tokens and has no weights"):
            composed(name, weighting)
        return
    objective = composed(name, weighting)
    parts = [
        replace(part, objective=replace(part.objective, vocab_size=11))
        if hasattr(part.objective, "vocab_size")
        else part
        for part in objective.parts
    ]
    objective = replace(objective, parts=tuple(parts))
    made = sides("main")
    loss = objective(*made).loss
    assert loss.isfinite().all()
    loss.sum().backward()
    # The weighting sees the unmoved batch: its weights are constants.
    fixed = objective.weightings[0][1]
    frozen = _Frozen(fixed, made)
    still = replace(objective, weightings=((weighting, frozen),))
    step = 1e-5
    for at, side in enumerate(made):
        for row, token in ((0, 0), (1, 2)):
            moved = []
            for sign in (1, -1):
                logp = side.logp.detach().clone()
                logp[row, token] += sign * step
                other = [*made]
                other[at] = replace(side, logp=logp)
                moved.append(float(still(*other).loss.sum().detach()))
            slope = (moved[0] - moved[1]) / (2 * step)
            if name in ("wpo", "dpo_bmc", "focalpo", "minor_dpo"):
                continue  # stop-gradients and kinks of the objective's own: the golden vectors hold them
            assert float(side.logp.grad[row, token]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


class _Frozen:
    """A weighting that gives what another gave for one batch."""

    detached = True

    def __init__(self, weighting, made):
        with torch.no_grad():
            self.given = [
                getattr(weighting, each)(*made) for each in ("token_weights", "pair_scale", "loss_weight")
            ]
        self.token_weights = lambda *_: self.given[0]
        self.pair_scale = lambda *_: self.given[1]
        self.loss_weight = lambda *_: self.given[2]


def test_weightings_multiply():
    made = sides("main")
    both = compose(["tdpo2"], ["tis", "mallows"], {"mallows.vocab_size": 11, "alpha": 0.5})
    weights = tdpo.weighting("tis").token_weights(*made)
    scale = tdpo.weighting("mallows", vocab_size=11).pair_scale(*made)
    weighed = [replace(side, token_weight=w.nan_to_num()) for side, w in zip(made, weights, strict=True)]
    want = -torch.nn.functional.logsigmoid(scale * tdpo.objective("tdpo2").margin(*weighed))
    torch.testing.assert_close(both(*made).loss, want)
    assert both.needs == {"forward_kl", "positive_logp", "negative_logp", "ref_entropy"}


def test_objectives_add_up_with_their_weights():
    made = sides("main")
    loss = compose(["tdpo2", "sft=0.25"], [], {"beta": 0.2, "sft.side": "rejected"})(*made)
    first = tdpo.objective("tdpo2", beta=0.2)(*made)
    second = tdpo.objective("sft", side="rejected")(*made)
    torch.testing.assert_close(loss.loss, first.loss + 0.25 * second.loss)
    torch.testing.assert_close(loss.chosen_reward, first.chosen_reward)
    torch.testing.assert_close(loss.metrics["loss/sft"], second.loss.detach())


def test_a_part_reads_the_running_mean_of_its_own():
    made = compose(["sampo", "bco_pair=0.5"], ["tis"], {"tis.transform": "random", "bco_pair.beta": 0.3})
    assert made.running == {"bco_pair/reward"}
    assert made.needs == {"draw_seed"}
    both = sides("main")
    alone = tdpo.objective("bco_pair", beta=0.3)
    assert torch.equal(made.observe(*both)["bco_pair/reward"], alone.observe(*both)["reward"])
    given = [replace(side, running={"bco_pair/reward": torch.tensor(0.7), "reward": None}) for side in both]
    shifted = tdpo.objective("bco_pair", beta=0.3, reward_shift=0.7)(*both)
    loss = made(*given)
    torch.testing.assert_close(loss.metrics["loss/bco_pair"], shifted.loss.detach())
    torch.testing.assert_close(loss.metrics["bco/shift"].double(), torch.tensor(0.7).double())
    assert compose(["sampo", "dpo"], [], {}).running == frozenset()


def test_auto_scale_makes_coefficients_average_one():
    from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics

    rng = np.random.default_rng(0)

    def one(row):
        pair = Pair.make(row, *(np.arange(3, dtype=np.int32) for _ in range(3)))
        entropies = [rng.uniform(0.5, 2.0, 3).astype(np.float16) for _ in SIDES]
        return ScoredPair(pair, *(SideStatistics(np.zeros(3, np.float32), e, None, None) for e in entropies))

    pairs = [one(row) for row in range(50)]
    known = CacheFacts(11, lambda names: iter(pairs))
    for name, face in (("mallows", tdpo.weighting), ("mallows_theta", tdpo.objective)):
        made = face(name, scale="auto", factor=2.0).prepared(known)
        assert made.vocab_size == 11
        entropy = torch.tensor(
            [
                [one.chosen.ref_entropy.mean(dtype=float), one.rejected.ref_entropy.mean(dtype=float)]
                for one in pairs
            ]
        )
        coefficients = -2.0 * made.scale * (entropy.mean(-1) / np.log(11)).log()
        assert float(coefficients.mean()) == pytest.approx(1, rel=1e-6)


def test_edits_are_the_tokens_that_differ():
    from tdpo.cache.pairs import Pair
    from tdpo.plugins.bmc import edited

    # Long enough for the matcher's own idea of which tokens are too frequent to look at.
    common = np.tile(np.arange(3, dtype=np.int32), 100)
    chosen = np.concatenate([common, [7], common]).astype(np.int32)
    rejected = np.concatenate([common, common, [8, 9]]).astype(np.int32)
    masks = edited(Pair.make(0, common[:2], chosen, rejected))
    assert masks[0].nonzero()[0].tolist() == [300]
    assert masks[1].nonzero()[0].tolist() == [600, 601]


@pytest.mark.parametrize(
    ("plugins", "weightings", "options", "message"),
    [
        (["dpo", "dpo"], [], {}, "--plugin dpo dpo: one of them is given twice"),
        (["dpo=much"], [], {}, "--plugin dpo=much: expected NAME or NAME=WEIGHT"),
        (["dpo"], ["malows"], {}, "no plugin provides the weighting 'malows'; did you mean 'mallows'?"),
        (["orpo"], ["mallows"], {}, "--weighting mallows: --plugin orpo has no margin for it to multiply"),
        (
            ["tis_dpo"],
            [],
            {},
            "--plugin tis_dpo weighs tokens and has no weights of its own: add --weighting",
        ),
        (["dpo"], ["tis"], {"mu_": 1}, "--set mu_: is no option of dpo, tis"),
        (["dpo"], ["tis", "bmc", "mallows", "decay"], {"gamma": 2}, "gamma=2.0 is out of range"),
        (["dpo"], ["tis"], {"low": 2}, "tis: low=2 must be below high=1.5"),
        (["dpo"], ["mallows"], {"scale": "aut"}, "scale='aut' is not one of auto; did you mean 'auto'?"),
        (["dpo"], ["mallows"], {"scale": -1}, "scale=-1.0 is out of range: it must be > 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(plugins, weightings, options, message):
    with pytest.raises(tdpo.TdpoError) as caught:
        compose(plugins, weightings, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_without_a_name_goes_to_the_first_objective_or_the_only_one_that_has_it():
    made = compose(["sft", "dpo=0.5"], ["decay"], {"gamma": 0.9, "beta": 0.7, "side": "rejected"})
    assert made.parts[0].objective.side == "rejected"
    assert made.parts[1].objective.beta == 0.7
    assert made.weightings[0][1].gamma == 0.9
    with pytest.raises(tdpo.TdpoError, match=r"more than one has that option; say dpo\.beta or ipo\.beta"):
        compose(["sft", "dpo", "ipo"], [], {"beta": 0.1})


def test_padding_never_matters():
    """What a padded place holds, NaN included, changes neither loss nor gradient."""
    for weighting in WEIGHTINGS:
        results = []
        for fill in (0.0, 1e3, float("nan")):
            made = []
            for side in sides("main"):
                extra = {
                    k: torch.where(side.mask, v, fill) if k in EXTRA.values() else v
                    for k, v in side.extra.items()
                }
                fields = ("logp", "ref_logp", "forward_kl", "ref_entropy", "log_collision")
                values = {
                    f: torch.where(side.mask, getattr(side, f), fill).detach().requires_grad_()
                    for f in fields
                }
                made.append(replace(side, extra=extra, **values))
            loss = composed("tdpo2", weighting)(*made).loss
            loss.sum().backward()
            results.append((loss.detach(), *(side.logp.grad for side in made)))
        for other in results[1:]:
            for got, want in zip(other, results[0], strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_fit_weighs_and_adds(cache, tmp_path):
    result = tdpo.fit(
        ["tdpo2", "sft=0.1"],
        cache,
        weighting=["mallows", "decay"],
        set={"beta": 0.2, "mallows.scale": "auto", "gamma": 0.9},
        output=str(tmp_path / "run"),
        max_steps=2,
        logging_steps=1,
        quiet=True,
    )
    assert {"loss/tdpo2", "loss/sft", "weights/pair"} <= set(result.metrics)
    assert result.metrics["loss/tdpo2"] == pytest.approx(np.log(2), abs=0.01)
    text = (tmp_path / "run" / "README.md").read_text()
    assert "--plugin tdpo2 --plugin sft=0.1 --weighting mallows --weighting decay" in text
    assert "arXiv 2405.14953" in text
