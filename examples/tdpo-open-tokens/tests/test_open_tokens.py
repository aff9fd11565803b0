"""The weights average one, and keep to the contract."""

import torch
from tdpo_open_tokens.weighting import OpenTokens

import tdpo
from tdpo.testing import check_weighting


def test_it_keeps_to_the_contract():
    check_weighting(OpenTokens)


def test_weights_average_one_and_certain_tokens_have_the_floor():
    entropy = torch.tensor([[0.0, 1.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    side = tdpo.Completions(mask=mask, logp=-entropy, ref_logp=-entropy, ref_entropy=entropy)
    weights, _ = OpenTokens(floor=0.25).token_weights(side, side)
    torch.testing.assert_close(side.mean(weights), torch.tensor([1.0]))
    assert weights[0, 0] == 0.25
