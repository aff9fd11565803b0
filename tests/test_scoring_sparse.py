"""The sparse primitive against the naive full-logits computation, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.core.scoring.adapted import LowRank
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.sparse import sparse_log_probs, sparse_scores


def naive(head, hidden, ids):
    """Full logits, log_softmax, gather: the truth to compare with."""
    z = hidden @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    for adapter in head.adapters:
        z = z + adapter.scale * (hidden @ adapter.a.T) @ adapter.b.T
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    log_q = torch.log_softmax(z, -1)
    q = log_q.exp()
    return log_q.gather(-1, ids), -(q * log_q).sum(-1), q.square().sum(-1).log()


def draw(seed, n, d, v, k, *, bias, scale=1.0, softcap=None, ranks=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    adapters = tuple(LowRank(normal(r, d), normal(v, r), 2.0 / r) for r in ranks)
    head = Head(normal(v, d), normal(v) if bias else None, scale, softcap, adapters)
    return head, normal(n, d), torch.randint(v, (n, k), generator=g)


def gradients(head, hidden, outputs, weights):
    inputs = [hidden, head.weight] + ([head.bias] if head.bias is not None else [])
    inputs += [part for adapter in head.adapters for part in (adapter.a, adapter.b)]
    loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 13),
    d=st.integers(1, 9),
    v=st.integers(2, 37),
    k=st.integers(1, 6),
    chunk=st.integers(1, 14),
    columns=st.none() | st.integers(1, 40),
    ranks=st.lists(st.integers(1, 3), max_size=2),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 2.0]),
)
def test_values_and_gradients_equal_the_naive_form(
    seed, n, d, v, k, chunk, columns, ranks, bias, scale, softcap
):
    head, hidden, ids = draw(seed, n, d, v, k, bias=bias, scale=scale, softcap=softcap, ranks=ranks)
    got = sparse_scores(head, hidden, ids, entropy=True, log_collision=True, chunk=chunk, columns=columns)
    want = naive(head, hidden, ids)
    for a, b in zip(got[:3], want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(w) for w in want]
    for a, b in zip(
        gradients(head, hidden, got[:3], weights), gradients(head, hidden, want, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_repeated_ids_add_their_gradients():
    head, hidden, _ = draw(0, 3, 4, 7, 1, bias=False)
    ids = torch.full((3, 5), 2)
    got = sparse_log_probs(hidden, head.weight, ids)
    want = naive(head, hidden, ids)[0]
    weights = [torch.randn_like(want)]
    for a, b in zip(
        gradients(head, hidden, [got], weights), gradients(head, hidden, [want], weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_masked_rows_take_no_part_in_value_or_gradient():
    head, hidden, ids = draw(1, 6, 4, 11, 3, bias=True)
    keep = torch.tensor([True, False, True, True, False, True])
    logp = sparse_log_probs(hidden, head.weight, ids, head.bias)
    (d_hidden,) = torch.autograd.grad(torch.where(keep[:, None], logp, 0).sum(), hidden, retain_graph=True)
    assert (d_hidden[~keep] == 0).all()
    alone = sparse_log_probs(hidden[keep], head.weight, ids[keep], head.bias)
    (d_weight,) = torch.autograd.grad(torch.where(keep[:, None], logp, 0).sum(), head.weight)
    (d_alone,) = torch.autograd.grad(alone.sum(), head.weight)
    torch.testing.assert_close(d_weight, d_alone, rtol=1e-9, atol=1e-12)


def test_second_use_of_statistics_not_asked_for_is_none():
    head, hidden, ids = draw(2, 2, 3, 5, 1, bias=False)
    scores = sparse_scores(head, hidden, ids)
    assert scores.entropy is None
    assert scores.log_collision is None


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same_one():
    head, hidden, ids = draw(3, 5, 4, 9, 2, bias=True)
    frozen = Head(head.weight.detach(), head.bias.detach())
    (d_free,) = torch.autograd.grad(sparse_scores(head, hidden, ids).logp.sum(), hidden)
    (d_frozen,) = torch.autograd.grad(sparse_scores(frozen, hidden, ids).logp.sum(), hidden)
    torch.testing.assert_close(d_free, d_frozen)


def test_peaked_distributions_and_minus_infinity_logits_stay_finite():
    weight = torch.eye(4, dtype=torch.float32) * 1e4
    bias = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
    hidden = torch.eye(4)[:2].requires_grad_()
    scores = sparse_scores(Head(weight, bias), hidden, torch.tensor([[0, 1], [1, 2]]), entropy=True)
    (grad,) = torch.autograd.grad(scores.logp.sum() + scores.entropy.sum(), hidden)
    assert scores.logp.isfinite().all()
    assert scores.entropy.isfinite().all()
    assert grad.isfinite().all()


def test_half_precision_accumulates_in_float32(monkeypatch):
    """Judged against float64: bfloat16 inputs lose their own rounding and nothing more."""
    monkeypatch.setattr("tdpo.core.scoring.projection.UPCAST_ROWS", 7)  # several slices, the last one short
    head, hidden, ids = draw(4, 9, 16, 40, 3, bias=True, dtype=torch.float32)
    low = Head(head.weight.detach().bfloat16().requires_grad_(), head.bias.detach().bfloat16())
    low_hidden = hidden.detach().bfloat16().requires_grad_()
    truth = Head(low.weight.detach().double(), low.bias.detach().double())
    got = sparse_scores(low, low_hidden, ids, chunk=4)
    assert got.logp.dtype == torch.float32
    want = naive(truth, low_hidden.detach().double(), ids)[0]
    torch.testing.assert_close(got.logp.double(), want, rtol=1e-5, atol=1e-5)
    d_hidden, d_weight = torch.autograd.grad(got.logp.sum(), [low_hidden, low.weight])
    assert d_hidden.dtype == d_weight.dtype == torch.bfloat16
    truth.weight.requires_grad_()
    hidden64 = low_hidden.detach().double().requires_grad_()
    exact = torch.autograd.grad(naive(truth, hidden64, ids)[0].sum(), [hidden64, truth.weight])
    for a, b in zip((d_hidden, d_weight), exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("chunk", "columns"), [(1, None), (3, 50), (3, 7), (100, 8), (100, None)])
def test_tiles_change_nothing(chunk, columns):
    head, hidden, ids = draw(5, 10, 8, 50, 4, bias=False)
    want = sparse_scores(head, hidden, ids, chunk=10).logp
    got = sparse_scores(head, hidden, ids, chunk=chunk, columns=columns).logp
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(want)]
    for a, b in zip(
        gradients(head, hidden, [got], weights), gradients(head, hidden, [want], weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_going_back_twice_gives_the_same_gradients():
    """The first time starts from the log-probs that forward left; they are gone by the second."""
    head, hidden, ids = draw(6, 6, 5, 30, 2, bias=True, softcap=2.0)
    scores = sparse_scores(head, hidden, ids, entropy=True, chunk=6)
    loss = scores.logp.sum() + scores.entropy.square().sum()
    inputs = [hidden, head.weight, head.bias]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_positions_give_gradients_of_zero():
    """As a process has them whose share of the last pairs is empty."""
    head, hidden, ids = draw(7, 0, 4, 9, 2, bias=True, ranks=(2,))
    scores = sparse_scores(head, hidden, ids, entropy=True)
    assert scores.logp.shape == (0, 2)
    found = gradients(head, hidden, [scores.logp, scores.entropy], [scores.logp, scores.entropy])
    assert all((gradient == 0).all() for gradient in found)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dtypes=st.sampled_from([("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]),
    entropy=st.booleans(),
)
def test_under_autocast_no_less_exact_than_full_logits(seed, dtypes, entropy):
    """Judged against float64 of the same weights: the naive form rounds its logits to bfloat16."""
    hidden_dtype, weight_dtype = (getattr(torch, name) for name in dtypes)
    head, hidden, ids = draw(seed, 24, 48, 200, 3, bias=False, dtype=torch.float32)
    head = Head((0.3 * head.weight.detach()).to(weight_dtype).requires_grad_())
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    weights = torch.randn(24, 3, generator=torch.Generator().manual_seed(seed))

    def run(scores, head, hidden):
        logp, h = scores(head, hidden)
        loss = (logp * weights).sum() + (h.sum() if entropy else 0)
        values = [logp, h, *torch.autograd.grad(loss, [hidden, head.weight])]
        return [value.detach().double() for value in values]

    def ours(head, hidden):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sparse_scores(head, hidden, ids, entropy=True, chunk=7)[:2]

    def theirs(head, hidden):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_q = torch.log_softmax(torch.nn.functional.linear(hidden, head.weight).float(), -1)
        return log_q.gather(-1, ids), -(log_q.exp() * log_q).sum(-1)

    wide = Head(head.weight.detach().double().requires_grad_())
    truth = run(
        lambda head, hidden: naive(head, hidden, ids)[:2], wide, hidden.detach().double().requires_grad_()
    )
    for mine, naively, exact in zip(run(ours, head, hidden), run(theirs, head, hidden), truth, strict=True):
        assert (mine - exact).norm() <= 1.02 * (naively - exact).norm()


def test_going_back_under_autocast_rounds_nothing_more():
    head, hidden, ids = draw(8, 9, 16, 60, 2, bias=False, dtype=torch.float32)
    (plain,) = torch.autograd.grad(sparse_scores(head, hidden, ids, chunk=4).logp.sum(), hidden)
    with torch.autocast("cpu", enabled=False):
        loss = sparse_scores(head, hidden, ids, chunk=4).logp.sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (under,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(plain, under)
