"""What is said of a chunk of logits, against the plain forms in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.core.scoring.chunking import cache_sized
from tdpo.core.scoring.distribution import Sampling, describe, largest

INF = float("inf")


def logits(rows, width, seed=0, scale=3.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) * scale + offset


def said(z, labels, sampling, seed=0):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(z), sampling.tail, generator=generator)
    return describe(z.clone(), labels, sampling, uniforms)


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([5, 63, 64, 65, 200, 1000, 4097]),
    rows=st.integers(1, 6),
    head=st.integers(0, 20),
    tail=st.integers(0, 9),
    scale=st.sampled_from([0.0, 0.3, 3.0, 40.0]),
    offset=st.sampled_from([0.0, -80.0, 80.0]),
    impossible=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_log_probs_entropy_head_and_draws_are_those_of_the_softmax(
    width, rows, head, tail, scale, offset, impossible, seed
):
    z = logits(rows, width, seed, scale, offset)
    if impossible:
        z[:, 1::3] = -INF
    head = min(head, width)
    tail = 0 if head == width else tail
    labels = torch.zeros(rows, dtype=torch.long)
    found = said(z, labels, Sampling(head, tail), seed)
    log_p = z.double().log_softmax(-1)
    torch.testing.assert_close(found.logp.double(), log_p[:, 0], rtol=1e-6, atol=2e-5)
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-6, atol=2e-5)
    assert (found.entropy >= 0).all()
    top, rest = found.ids[:, :head], found.ids[:, head:]
    # Ties may come in any order, but what is listed is the likeliest there is, each token once.
    assert torch.equal(z.gather(-1, top), z.topk(head, -1).values)
    assert all(len(set(row)) == head for row in top.tolist())
    at_ids = log_p.gather(-1, found.ids)
    torch.testing.assert_close(found.dist_logp.double(), at_ids, rtol=1e-6, atol=2e-5)
    if ((log_p > -INF).sum(-1) > head).all():
        assert not any(set(a) & set(b) for a, b in zip(top.tolist(), rest.tolist(), strict=True))
        assert (log_p.gather(-1, rest) > -INF).all()


@pytest.mark.parametrize("width", [70, 500, 3000])
def test_draws_follow_the_rest_of_the_distribution(width):
    """Pearson's statistic over all tokens outside the head, against its own mean and spread."""
    z = logits(1, width, seed=width, scale=1.0)
    draws = 200 * width
    found = said(z, torch.tensor([0]), Sampling(3, draws), seed=1)
    p = z[0].double().softmax(-1)
    p[found.ids[0, :3]] = 0
    expected = (p / p.sum() * draws).numpy()
    counts = np.bincount(found.ids[0, 3:].numpy(), minlength=width)
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum()
    freedom = some.sum() - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_a_draw_is_the_inverse_of_the_distribution_function():
    z = logits(4, 1000, seed=7)
    uniforms = torch.linspace(0, 1 - 1e-6, 50).expand(4, -1).contiguous()
    found = describe(z.clone(), torch.zeros(4, dtype=torch.long), Sampling(5, 50), uniforms)
    p = z.double().softmax(-1).scatter(-1, found.ids[:, :5], 0)
    cdf = p.cumsum(-1) / p.sum(-1, keepdim=True)
    drawn = found.ids[:, 5:]
    above = cdf.gather(-1, drawn)
    below = above - (p / p.sum(-1, keepdim=True)).gather(-1, drawn)
    assert (uniforms < above + 1e-5).all()
    assert (uniforms > below - 1e-5).all()


def test_the_largest_are_found_across_blocks_and_in_the_last_one():
    z = torch.zeros(2, 1000)
    z[0, [3, 70, 71, 998, 999]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    z[1, :5] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert largest(z, 3).indices.tolist() == [[3, 70, 71], [0, 1, 2]]
    assert largest(z, 3).values.tolist() == [[5.0, 4.0, 3.0]] * 2
    assert largest(logits(2, 4096), 0).indices.shape == (2, 0)
    z = logits(8, 4096 + 13, seed=2)
    z[:, -5:] += 20
    assert torch.equal(largest(z, 9).indices, z.topk(9, -1).indices)


def test_rows_are_walked_once_each():
    for rows, width in ((1, 10), (300, 40_000), (7, 3_000_000)):
        z = torch.empty(rows, 1).expand(rows, width)
        covered = [row for part in cache_sized(z) for row in range(part.start, part.stop)]
        assert covered == list(range(rows))
