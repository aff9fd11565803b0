"""The loss before, at and beyond its knee."""

import pytest
import torch

import tdpo

TARGET_REACHED = 10.0  # nats, at beta = 0.1


def side(log_ratio):
    """One completion of two tokens and a padded one, whose log-ratio sums to ``log_ratio``."""
    logp = torch.tensor([[log_ratio - 1.0, 1.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    return tdpo.Completions(mask=mask, logp=logp, ref_logp=torch.zeros_like(logp))


@pytest.mark.parametrize(
    ("difference", "loss"), [(0.0, 1.0), (4.0, 0.6), (-4.0, 1.4), (TARGET_REACHED, 0.0), (30.0, 0.0)]
)
def test_loss_is_one_minus_beta_times_the_difference_until_zero(difference, loss):
    result = tdpo.objective("target_hinge", beta=0.1)(side(difference), side(0.0))
    torch.testing.assert_close(result.loss, torch.tensor([loss]))
    reward_margin = result.chosen_reward - result.rejected_reward
    torch.testing.assert_close(reward_margin, torch.tensor([0.1 * difference]))


@pytest.mark.parametrize(("difference", "gradient"), [(4.0, -0.1), (30.0, 0.0)])
def test_a_pair_beyond_the_target_has_no_gradient(difference, gradient):
    chosen = side(difference)
    tdpo.objective("target_hinge", beta=0.1)(chosen, side(0.0)).loss.sum().backward()
    torch.testing.assert_close(chosen.logp.grad, torch.tensor([[gradient, gradient, 0.0]]))


def test_target_moves_the_knee():
    result = tdpo.objective("target_hinge", beta=0.1, target=3)(side(4.0), side(0.0))
    torch.testing.assert_close(result.loss, torch.tensor([2.6]))


def test_target_must_be_positive():
    with pytest.raises(tdpo.TdpoError, match=r"target=0\.0 is out of range: it must be > 0"):
        tdpo.objective("target_hinge", target=0)
