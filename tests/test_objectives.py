"""Built-in objectives against the golden vectors, and their gradients against two independent truths."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import EXTRA, FIELDS, SIDES, golden, inputs, sides, vectors
from objectives_page import PAGE, page

import tdpo
from tdpo.core.registry import objective_class, weighting_class
from tdpo.plugins import tdpo_objectives, tdpo_weightings

BUILT_IN = sorted(tdpo_objectives())
NAIVE = ("dpo", "tdpo1", "tdpo2")


def cases():
    return [
        pytest.param(case, id=f"{case['objective']}-{case['batch']}-{case['hparams']}")
        for case in vectors()["cases"]
        if case["objective"] in BUILT_IN
        and case["hparams"].get("estimator") != "mismatched"
        # KTO's mismatched estimate takes a pass of the policy that no cached pair has.
        and not (case["objective"] == "kto_batch" and "estimator" not in case["hparams"])
    ]


def test_every_golden_objective_is_built_in():
    assert {case["objective"] for case in vectors()["cases"]} == set(BUILT_IN) - {"sft"}


@pytest.mark.parametrize("name", [*BUILT_IN, *tdpo_weightings()])
def test_each_says_which_figures_to_watch(name):
    for find in (objective_class, weighting_class):
        if name in (tdpo_objectives() if find is objective_class else tdpo_weightings()):
            assert "``" in find(name).watch


@pytest.mark.parametrize("batch", ["main", "edge"])
def test_bco_outside_of_a_fit_is_shifted_by_the_batch_and_in_one_by_the_run(batch):
    for case in vectors()["cases"]:
        if case["objective"] == "bco_batch" and case["batch"] == batch:
            made = sides(batch)
            objective = tdpo.objective("bco_pair", **case["hparams"])
            np.testing.assert_allclose(objective(*made).loss.detach(), case["loss"], rtol=1e-9)
            rewards = objective.observe(*made)["reward"].detach()
            assert rewards.tolist() == pytest.approx(case["chosen_reward"] + case["rejected_reward"])
            given = [replace(side, running={"reward": torch.tensor(0.7)}) for side in made]
            constant = tdpo.objective("bco_pair", **case["hparams"], reward_shift=0.7)
            torch.testing.assert_close(objective(*given).loss, constant(*made).loss)
            assert constant.running == tdpo.objective("bco_pair", shift="none").running == frozenset()


@pytest.mark.filterwarnings("ignore:label_smoothing=0.5", "ignore:gamma=")
@pytest.mark.parametrize("case", cases())
def test_values_and_rewards_equal_the_golden_vectors(case):
    loss = golden(case)(*inputs(case))
    for got, want in (
        (loss.loss, case["loss"]),
        (loss.chosen_reward, case["chosen_reward"]),
        (loss.rejected_reward, case["rejected_reward"]),
    ):
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:label_smoothing=0.5", "ignore:gamma=")
@pytest.mark.parametrize("case", cases())
def test_gradients_equal_the_golden_finite_differences(case):
    """Each statistic moved by itself: this is where a misplaced stop-gradient shows."""
    made = inputs(case)
    golden(case)(*made).loss.sum().backward()
    for name, rows in case["grad"].items():
        for side, completions in zip(SIDES, made, strict=True):
            leaf = getattr(completions, FIELDS[name])
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert not grad[~completions.mask].any()
            for row, want, loss in zip(grad, rows, case["loss"], strict=True):
                if want is None:  # not differentiable there
                    continue
                # Differences of a huge loss (f-DPO at exp(62)) are exact to its own last digits only.
                atol = 1e-8 + 1e-11 * abs(loss)
                np.testing.assert_allclose(row[: len(want[side])], want[side], rtol=1e-6, atol=atol)


def naive_loss(name, policy, reference, ids, beta, alpha):
    """A pair's loss from full log-prob matrices [T, V] per side, written as the paper writes it."""
    ratio, kl = {}, {}
    for side in SIDES:
        rows = torch.arange(len(ids[side]))
        ratio[side] = (policy[side] - reference[side])[rows, ids[side]].sum()
        kl[side] = (reference[side].exp() * (reference[side] - policy[side])).sum()
    u = beta * (ratio["chosen"] - ratio["rejected"])
    if name == "tdpo1":
        u = u - beta * (kl["rejected"] - kl["chosen"])
    if name == "tdpo2":
        u = u - alpha * beta * (kl["rejected"] - kl["chosen"].detach())
    return -torch.nn.functional.logsigmoid(u)


@pytest.mark.parametrize("name", NAIVE)
def test_gradients_to_logits_equal_autograd_on_the_naive_full_vocabulary_form(name):
    """Through our sparse primitive and the estimator at k = V, down to the policy's logits."""
    from tdpo.core.divergence import forward_kl
    from tdpo.core.scoring.head import Head
    from tdpo.core.scoring.sparse import sparse_scores

    generator = torch.Generator().manual_seed(3)
    v, lengths, options = 11, {"chosen": 4, "rejected": 6}, {"beta": 0.3}
    logits = {s: torch.randn(n, v, generator=generator, dtype=torch.float64) for s, n in lengths.items()}
    reference = {
        s: torch.randn(n, v, generator=generator, dtype=torch.float64).log_softmax(-1)
        for s, n in lengths.items()
    }
    ids = {s: torch.randint(v, (n,), generator=generator) for s, n in lengths.items()}
    if name == "tdpo2":
        options["alpha"] = 0.7

    leaves = {s: x.clone().requires_grad_() for s, x in logits.items()}
    want = naive_loss(
        name, {s: x.log_softmax(-1) for s, x in leaves.items()}, reference, ids, 0.3, options.get("alpha")
    )
    want.backward()

    ours, made = {s: x.clone().requires_grad_() for s, x in logits.items()}, []
    identity = Head(torch.eye(v, dtype=torch.float64))
    for side in SIDES:
        everything = torch.arange(v).expand(lengths[side], v)
        scores = sparse_scores(identity, ours[side], torch.cat([ids[side][:, None], everything], 1), chunk=3)
        mask = torch.ones(1, lengths[side], dtype=torch.bool)
        logp = scores.logp[None]
        kl = forward_kl(reference[side][None], logp[..., 1:], v, mask, vocab_size=v)
        ref_logp = reference[side].gather(1, ids[side][:, None])[None, :, 0]
        made.append(tdpo.Completions(mask=mask, logp=logp[..., 0], ref_logp=ref_logp, forward_kl=kl))
    got = tdpo.objective(name, **options)(*made).loss
    got.sum().backward()
    torch.testing.assert_close(got[0], want, rtol=1e-10, atol=1e-12)
    for side in SIDES:
        torch.testing.assert_close(ours[side].grad, leaves[side].grad, rtol=1e-10, atol=1e-12)


def test_tdpo2_keeps_the_gradient_of_the_rejected_kl_only_and_tdpo1_of_both():
    for name, chosen_has in (("tdpo1", True), ("tdpo2", False)):
        chosen, rejected = sides("main")
        tdpo.objective(name)(chosen, rejected).loss.sum().backward()
        assert (chosen.forward_kl.grad is not None) is chosen_has
        assert (rejected.forward_kl.grad[rejected.mask] != 0).all()


def test_tdpo2_at_alpha_1_equals_tdpo1_and_at_0_dpo():
    made = sides("main")
    loss = {n: tdpo.objective(n, **o)(*made).loss for n, o in (("tdpo1", {}), ("dpo", {}))}
    torch.testing.assert_close(tdpo.objective("tdpo2", alpha=1)(*made).loss, loss["tdpo1"])
    torch.testing.assert_close(tdpo.objective("tdpo2", alpha=0)(*made).loss, loss["dpo"])


def test_tdpo2_logit_reward_has_the_logit_as_its_margin():
    made = sides("main")
    objective = tdpo.objective("tdpo2", beta=0.4, alpha=0.3, reward_form="logit")
    loss = objective(*made)
    torch.testing.assert_close(loss.chosen_reward - loss.rejected_reward, objective.margin(*made).detach())


def test_reference_free_dpo_ignores_the_reference():
    chosen, rejected = sides("main")
    loss = tdpo.objective("dpo", beta=1, reference_free=True)(chosen, rejected)
    want = -torch.nn.functional.logsigmoid(chosen.sum(chosen.logp) - rejected.sum(rejected.logp))
    torch.testing.assert_close(loss.loss, want)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_losses_and_gradients_stay_finite_at_the_extremes(name, dtype, size):
    logp = torch.full((2, 1), -1.0, dtype=dtype, requires_grad=True)
    one = torch.ones(2, 1, dtype=dtype)
    common = {
        "mask": torch.ones(2, 1, dtype=torch.bool),
        "logp": logp,
        "reverse_kl": 1e4 * one,
        "log_collision": -one,
        "ref_entropy": 0.0 * one,
        "token_weight": 2.0 * one,
        "draw_seed": torch.arange(2),
        "extra": dict.fromkeys((*EXTRA.values(), "advantage", "prompt_embedding"), one),
    }
    chosen = tdpo.Completions(ref_logp=logp.detach() - size, forward_kl=0 * one, **common)
    rejected = tdpo.Completions(ref_logp=logp.detach() + size, forward_kl=1e4 * one, **common)
    objective = tdpo.objective(name)
    options = {"beta": 1.0, "vocab_size": 11}
    objective = replace(objective, **{k: v for k, v in options.items() if hasattr(objective, k)})
    loss = objective(chosen, rejected)
    loss.loss.sum().backward()
    assert loss.loss.isfinite().all()
    assert logp.grad.isfinite().all()


def test_a_loss_starts_at_ln_2_and_label_smoothing_of_a_half_is_warned_about():
    mask = torch.ones(1, 3, dtype=torch.bool)
    same = tdpo.Completions(mask=mask, logp=torch.zeros(1, 3), ref_logp=torch.zeros(1, 3))
    assert tdpo.objective("dpo")(same, same).loss.item() == pytest.approx(np.log(2))
    with pytest.warns(UserWarning, match="no preference signal"):
        tdpo.objective("dpo", label_smoothing=0.5)


def test_a_statistic_that_was_not_declared_says_so():
    mask = torch.ones(1, 2, dtype=torch.bool)
    bare = tdpo.Completions(mask=mask, logp=torch.zeros(1, 2), ref_logp=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="needs"):
        tdpo.objective("tdpo1")(bare, bare)


def test_describe_shows_what_to_watch_and_what_is_kept_over_a_run():
    from click.testing import CliRunner

    from tdpo.core.cli import tdpo as command

    def described(*words):
        return CliRunner().invoke(command, ["plugins", "describe", *words]).stdout

    text = described("bco_pair")
    assert "  watch  ``rewards/chosen`` goes above ``bco/shift``" in text
    assert "  reads  means over the run so far: reward" in text
    found = json.loads(described("tdpo1", "--json"))
    assert found["watch"] == objective_class("tdpo1").watch
    assert found["running"] == []


def test_the_page_about_objectives_says_what_they_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/objectives_page.py"
