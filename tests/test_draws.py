"""Draws of a pair's tokens: the same in every pass, batch and device, another in every epoch."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import sides
from hypothesis import given
from hypothesis import strategies as st

import tdpo
from tdpo.core.composing import compose
from tdpo.core.draws import draw_seeds
from tdpo.core.training.data import encode_pair_ids

IDS = [f"{7919 * n:032x}" for n in range(1, 300)]


def splitmix(x):
    """The finaliser as published, on unsigned numbers."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def completions(lengths, seeds, width=None, dtype=torch.float32):
    width = width or max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.where(mask, values, float("nan")).to(dtype)
    return tdpo.Completions(
        mask=mask, logp=values, ref_logp=torch.zeros_like(values), draw_seed=torch.as_tensor(seeds)
    )


@given(seed=st.integers(-(2**63), 2**63 - 1), salt=st.text(max_size=8))
def test_numbers_are_those_of_the_published_hash(seed, salt):
    side = completions([9], [seed])
    start = splitmix(np.uint64((seed ^ zlib.crc32(salt.encode())) % 2**64))
    with np.errstate(over="ignore"):
        keys = splitmix(start + np.arange(1, 10, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    want = (keys >> np.uint64(40)).astype(np.float64) / 2**24
    np.testing.assert_array_equal(side.uniform(salt)[0].numpy(), want.astype(np.float32))
    assert ((want >= 0) & (want < 1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_are_the_same_in_every_dtype(dtype):
    got = completions([50], [3], dtype=dtype).uniform("x")
    torch.testing.assert_close(got.double(), completions([50], [3]).uniform("x").double(), rtol=0, atol=0)


def test_seeds_are_of_pair_side_epoch_and_run():
    encoded = encode_pair_ids(IDS)
    every = [
        seeds for epoch in (0, 1, 2) for run in (0, 1) for seeds in draw_seeds(encoded, seed=run, epoch=epoch)
    ]
    together = torch.cat(every)
    assert len(set(together.tolist())) == len(together)
    order = torch.randperm(len(IDS))
    for side in (0, 1):
        torch.testing.assert_close(
            draw_seeds(encoded[order], 0, 1)[side], draw_seeds(encoded, 0, 1)[side][order]
        )


def test_numbers_are_uniform_and_independent_between_sides_places_and_names():
    seeds = torch.cat([torch.stack(draw_seeds(encode_pair_ids(IDS), 0, epoch), -1) for epoch in range(40)])
    chosen, rejected = (completions([4] * len(seeds), seeds[:, side]) for side in (0, 1))
    columns = torch.cat([chosen.uniform("a"), rejected.uniform("a"), chosen.uniform("b")], 1).double()
    n = len(columns)
    # The mean of n uniform numbers, and the correlation of n pairs, to within five standard deviations.
    assert (columns.mean(0) - 0.5).abs().max() < 5 / np.sqrt(12 * n)
    assert (torch.corrcoef(columns.T) - torch.eye(12)).abs().max() < 5 / np.sqrt(n)
    filled = torch.histc(columns, bins=16, min=0, max=1) / columns.numel()
    assert (filled * 16 - 1).abs().max() < 0.05


def test_sampo_keeps_as_many_tokens_of_either_side_each_as_often():
    seeds = torch.arange(4000) * 1_000_003
    chosen = completions([6] * 4000, seeds, width=9)
    rejected = completions([2] * 4000, seeds + 1, width=4)
    weights = tdpo.weighting("sampo").token_weights(chosen, rejected)
    assert (weights[0].sum(-1) == 2).all()
    assert not weights[0][~chosen.mask].any()
    assert (weights[1][:, :2] == 1).all()
    assert (weights[0].mean(0)[:6] - 2 / 6).abs().max() < 5 * np.sqrt(2 / 6 * 4 / 6 / 4000)
    # Without replacement: every pair of places equally often.
    together = weights[0][:, :6].T @ weights[0][:, :6] / 4000
    off = together[~torch.eye(6, dtype=torch.bool)]
    assert (off - 1 / 15).abs().max() < 5 * np.sqrt(1 / 15 * 14 / 15 / 4000)


def test_the_mean_of_sampo_over_draws_is_its_expected_form():
    main = sides("main")
    expected = tdpo.objective("sampo", expected=True)
    assert expected.needs == frozenset()
    want = expected.rewards(*main)
    drawn = [[], []]
    for epoch in range(3000):
        seeds = draw_seeds(encode_pair_ids(IDS[:4]), 0, epoch)
        made = [replace(side, draw_seed=seed) for side, seed in zip(main, seeds, strict=True)]
        for into, reward in zip(drawn, tdpo.objective("sampo").rewards(*made), strict=True):
            into.append(reward.detach())
    for found, mean in zip(drawn, want, strict=True):
        rewards = torch.stack(found)
        error = 5 * rewards.std(0) / np.sqrt(len(rewards)) + 1e-12
        assert ((rewards.mean(0) - mean).abs() <= error).all()


def test_sampo_of_equal_lengths_is_dpo():
    chosen, rejected = completions([5, 3], [1, 2]), completions([5, 3], [3, 4])
    torch.testing.assert_close(
        tdpo.objective("sampo")(chosen, rejected).loss, tdpo.objective("dpo")(chosen, rejected).loss
    )


@pytest.mark.parametrize(
    "objective",
    [
        lambda: tdpo.objective("sampo"),
        lambda: compose(["dpo"], ["sampo"]),
        lambda: compose(["ipo"], ["tis"], {"transform": "random"}),
    ],
)
def test_a_draw_depends_neither_on_the_batch_nor_on_padding_nor_on_torch(objective):
    objective, lengths = objective(), ([7, 1, 4], [2, 6, 5])
    chosen, rejected = (completions(each, [11, 12, 13], width=7) for each in lengths)
    state = torch.get_rng_state()
    loss = objective(chosen, rejected).loss
    assert torch.equal(state, torch.get_rng_state())
    for row in range(3):
        alone = [
            tdpo.Completions(
                mask=side.mask[row : row + 1, : lengths[at][row]],
                logp=side.logp[row : row + 1, : lengths[at][row]],
                ref_logp=side.ref_logp[row : row + 1, : lengths[at][row]],
                draw_seed=side.draw_seed[row : row + 1],
            )
            for at, side in enumerate((chosen, rejected))
        ]
        torch.testing.assert_close(objective(*alone).loss, loss[row : row + 1])


def test_random_weights_lie_between_least_and_most_and_ask_for_no_scores():
    weighting = tdpo.weighting("tis", transform="random", least=0.5, most=0.9, eos_weight=0.0)
    assert weighting.needs == {"draw_seed"}
    chosen, rejected = completions([60], [1]), completions([40], [2])
    weights = weighting.token_weights(chosen, rejected)[0][0]
    assert weights[-1] == 0
    assert weights[:-1].min() >= 0.5
    assert weights[:-1].max() < 0.9
    assert weights[:-1].std() > 0.05
    plain = tdpo.weighting("tis", transform="random").token_weights(chosen, rejected)
    assert 0.7 <= plain[1].min() < plain[1].max() <= 1.3


def test_without_a_seed_it_says_what_to_declare():
    side = replace(completions([3], [1]), draw_seed=None)
    with pytest.raises(ValueError, match="name 'draw_seed' in the objective's `needs`"):
        side.uniform()


def on_gpu(side):
    moved = {name: getattr(side, name).cuda() for name in ("mask", "logp", "ref_logp", "draw_seed")}
    return replace(side, **moved)


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_does():
    encoded = encode_pair_ids(IDS)
    for ours, theirs in zip(draw_seeds(encoded, 5, 2), draw_seeds(encoded.cuda(), 5, 2), strict=True):
        assert torch.equal(ours, theirs.cpu())
    sides = [completions([width] * len(IDS), ours) for width in (33, 5)]
    moved = [on_gpu(side) for side in sides]
    assert torch.equal(sides[0].uniform("a"), moved[0].uniform("a").cpu())
    for here, there in zip(
        tdpo.weighting("sampo").token_weights(*sides),
        tdpo.weighting("sampo").token_weights(*moved),
        strict=True,
    ):
        assert torch.equal(here, there.cpu())
