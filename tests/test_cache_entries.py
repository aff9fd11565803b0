"""Entries of the cached distributions: as many a token as it deserves."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tdpo
from tdpo.cache.decode import DamagedShardError, RowGroup
from tdpo.cache.encode import write_pairs
from tdpo.cache.entries import Entries, misfit, packed, unpacked
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.schema import CachedStatistics
from tdpo.cache.values import check_values
from tdpo.core.divergence import ESTIMATORS, forward_kl
from tdpo.core.scoring.distribution import Sampling, describe

V = 300


def logits(tokens, seed=0, spread=9.0):
    """Distributions from all but certain to wide open."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.1, spread, tokens)[:, None]
    return (torch.randn(tokens, V, generator=generator) * scale).double()


def uniforms(tokens, draws, seed=1):
    return torch.rand(tokens, draws, generator=torch.Generator().manual_seed(seed)).double()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 9), st.integers(0, 2**32))
def test_entries_come_back_from_the_disk_as_they_were(head, tail, tokens, seed):
    rng = np.random.default_rng(seed)
    there = np.concatenate(
        [np.arange(width) < rng.integers(0, width + 1, tokens)[:, None] for width in (head, tail)], axis=1
    )
    ids = np.where(there, rng.integers(0, V, there.shape), 0).astype(np.uint32)
    logp = np.where(there, -rng.random(there.shape), -np.inf).astype(np.float16)
    entries = packed(ids, logp, head)
    assert len(entries.ids) == there.sum()
    assert misfit(entries, head, tail) is None
    for got, want in zip(unpacked(entries, head, tail), (ids, logp), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_head_is_the_fewest_tokens_that_reach_its_mass_and_the_draws_follow_what_is_left():
    z, sampling = logits(40), Sampling(8, 6, head_mass=0.9, tail_mass=0.4)
    said = describe(z.clone(), torch.zeros(40, dtype=torch.long), sampling, uniforms(40, 6))
    p, order = z.softmax(-1).sort(-1, descending=True)
    sizes = set()
    for t in range(40):
        size = next((k for k in range(1, 8) if p[t, :k].sum() >= 0.9), 8)
        left = float(1 - p[t, :size].sum())
        draws = int(np.clip(np.ceil(6 * left / 0.4), 1, 6))
        sizes.add((size, draws))
        there = said.dist_logp[t] > -torch.inf
        assert there.tolist() == [i < size for i in range(8)] + [i < draws for i in range(6)]
        assert said.ids[t, :size].tolist() == order[t, :size].tolist()
        assert not set(said.ids[t, 8 : 8 + draws].tolist()) & set(said.ids[t, :size].tolist())
        torch.testing.assert_close(
            said.dist_logp[t, there], z[t].log_softmax(-1)[said.ids[t, there]], rtol=1e-9, atol=1e-9
        )
    assert len(sizes) > 8


def test_what_an_early_head_leaves_out_is_drawn_by_its_probability():
    z = torch.tensor([[3.0, 2.0, 1.5, 1.0, 0.0, -1.0]])
    draws = 60_000
    said = describe(
        z.clone(), torch.tensor([0]), Sampling(4, draws, head_mass=0.5), uniforms(1, draws).float()
    )
    p = z[0].softmax(-1)
    assert (said.dist_logp[0, :4] > -torch.inf).tolist() == [True, False, False, False]
    counts = np.bincount(said.ids[0, 4:], minlength=6)
    want = np.where(np.arange(6) < 1, 0, p.numpy()) / float(p[1:].sum())
    assert counts[0] == 0
    chi2 = ((counts - draws * want)[1:] ** 2 / (draws * want[1:])).sum()
    assert chi2 < 23.5  # 4 degrees of freedom, 99.99 %


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "fitted"])
def test_the_estimate_is_unbiased_whatever_number_of_entries_a_token_has(estimator):
    repeats, tokens = 4000, 6
    z = logits(tokens, spread=2.0)
    log_p = z.log_softmax(-1)
    log_q = (z + torch.randn(tokens, V, generator=torch.Generator().manual_seed(3))).log_softmax(-1)
    sampling = Sampling(4, 5, head_mass=0.8, tail_mass=0.5)
    said = describe(
        z.repeat(repeats, 1),
        torch.zeros(tokens * repeats, dtype=torch.long),
        sampling,
        uniforms(tokens * repeats, 5),
    )
    shape = (repeats, tokens, 9)
    kl = forward_kl(
        said.dist_logp.reshape(shape),
        log_q.repeat(repeats, 1).gather(-1, said.ids).reshape(shape),
        4,
        torch.ones(shape[:2], dtype=torch.bool),
        estimator=estimator,
        vocab_size=V,
    ).sum(-1)
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    assert abs(float(kl.mean()) - exact) < 4 * float(kl.std()) / repeats**0.5
    assert float(kl.std()) > 0


def test_at_the_reference_the_estimate_is_zero():
    z = logits(12)
    said = describe(z, torch.zeros(12, dtype=torch.long), Sampling(4, 5, 0.9, 0.3), uniforms(12, 5))
    mask = torch.ones(1, 12, dtype=torch.bool)
    policy = said.dist_logp.nan_to_num(neginf=-3.0)[None].requires_grad_()
    for estimator in ESTIMATORS:
        kl = forward_kl(said.dist_logp[None], policy, 4, mask, estimator=estimator, vocab_size=V)
        assert (kl == 0).all()


def scored(sampling, rows=3, tokens=20):
    """Pairs with real distributions."""
    pairs = []
    for row in range(rows):
        sides, ids = [], []
        for seed in (2 * row, 2 * row + 1):
            z = logits(tokens, seed).float()
            label = torch.multinomial(z.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
            said = describe(z, label, sampling, uniforms(tokens, sampling.tail, seed).float())
            ids.append(label.numpy())
            sides.append(
                SideStatistics(
                    said.logp.numpy(),
                    said.entropy.numpy().astype(np.float16),
                    said.ids.numpy().astype(np.uint32),
                    said.dist_logp.numpy().astype(np.float16),
                )
            )
        pairs.append(ScoredPair(Pair.make(row, [1, 2], *ids), *sides))
    return pairs


def written(pairs, statistics):
    file = io.BytesIO()
    write_pairs(file, pairs, statistics)
    return pq.read_table(io.BytesIO(file.getvalue()))


def test_a_shard_holds_only_the_entries_that_are_there_and_gives_them_all_back():
    sampling = Sampling(8, 6, 0.9, 0.4)
    statistics = CachedStatistics(True, 8, 6, 0, V, head_mass=0.9, tail_mass=0.4)
    pairs = scored(sampling)
    table = written(pairs, statistics)
    kept = sum(int((one.chosen.dist_logp > -np.inf).sum()) for one in pairs)
    assert len(table.column("chosen_dist_ids").combine_chunks().flatten()) == kept < 3 * 20 * 14
    assert not list(check_values(table, statistics))
    group = RowGroup(table.combine_chunks(), statistics)
    for row, one in enumerate(pairs):
        for side in ("chosen", "rejected"):
            want, got = one.side(side), group[row].side(side)
            np.testing.assert_array_equal(got.dist_logp, want.dist_logp)
            there = want.dist_logp > -np.inf
            np.testing.assert_array_equal(got.dist_ids[there], want.dist_ids[there])


@pytest.mark.parametrize(
    ("asked", "column", "what"),
    [
        ({"head_mass": 0.97, "tail_mass": 0.4}, "dist_head", "ends before it holds 0.97"),
        ({"head_mass": 0.9, "tail_mass": 0.1}, "dist_tail", "fewer draws"),
    ],
)
def test_verify_sees_that_a_token_has_too_few_entries(asked, column, what):
    table = written(scored(Sampling(8, 6, 0.9, 0.4)), CachedStatistics(True, 8, 6, 0, V))
    found = list(check_values(table, CachedStatistics(True, 8, 6, 0, V, **asked)))
    assert found
    assert all(name.endswith(column) and what in said for _, name, said in found)


def test_counts_that_contradict_the_entries_are_found():
    assert "more entries" in misfit(Entries(np.array([3]), np.array([0]), np.zeros(3), np.zeros(3)), 2, 2)
    assert "count 2 entries" in misfit(Entries(np.array([1]), np.array([1]), np.zeros(3), np.zeros(3)), 2, 2)
    statistics = CachedStatistics(True, 8, 6, 0, V)
    table = written(scored(Sampling(8, 6, 0.9, 0.4)), statistics)
    other = written(scored(Sampling(8, 6, 0.5, 0.4)), statistics)
    at = table.column_names.index("chosen_dist_head")
    broken = table.set_column(at, table.field(at), other.column("chosen_dist_head"))
    assert any("chosen_dist_ids" in name for _, name, _ in check_values(broken, statistics))
    with pytest.raises(DamagedShardError):
        RowGroup(broken.combine_chunks(), statistics)


def test_a_build_keeps_fewer_entries_and_the_identity_says_how(tmp_path, reference, pairs):
    made = tdpo.build_cache(
        reference, pairs, tmp_path / "c", head=64, tail=8, head_mass=0.5, tail_mass=0.9, limit=12, quiet=True
    )
    assert made.identity["statistics"]["head_mass"] == 0.5
    there = np.concatenate([one.chosen.dist_logp > -np.inf for one in made])
    assert 0 < there[:, :64].mean() < 1
    assert 0 < there[:, 64:].mean() < 1
    assert there[:, 0].all()
    assert there[:, 64].all()
    assert tdpo.verify_cache(tmp_path / "c", rescore=6, quiet=True).ok
