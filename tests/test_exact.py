"""Exact divergences: from the cache's exact tier as from two models with full logits."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_tokenizer

import tdpo
from tdpo.core.divergence import forward_kl
from tdpo.core.scoring.exact import FromHidden, FromLogProbs
from tdpo.core.scoring.forward import enable_scoring
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.sparse import sparse_scores
from tdpo.core.training.data import collate
from tdpo.core.training.divergences import ExactDivergences


def naive_logits(head, hidden):
    z = hidden @ head.weight.T
    z = (z if head.bias is None else z + head.bias) * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def naive_kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def draw_head(generator, v, d, *, bias, scale, softcap):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Head(normal(v, d), normal(v) if bias else None, scale, softcap)


def with_gradients(head):
    return Head(
        head.weight.clone().requires_grad_(),
        None if head.bias is None else head.bias.clone().requires_grad_(),
        head.scale,
        head.softcap,
    )


def parameters(head, hidden):
    return [hidden, head.weight] + ([] if head.bias is None else [head.bias])


heads = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "scale": st.sampled_from([1.0, 0.25]),
        "softcap": st.sampled_from([None, 2.0]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 9),
    d=st.integers(1, 6),
    d_ref=st.integers(1, 6),
    v=st.integers(2, 23),
    chunk=st.integers(1, 10),
    columns=st.none() | st.integers(1, 24),
    ours=heads,
    theirs=heads,
    wanted=st.sets(st.sampled_from(["entropy", "log_collision", "forward_kl", "reverse_kl"])),
)
def test_values_and_gradients_equal_full_logits(seed, n, d, d_ref, v, chunk, columns, ours, theirs, wanted):
    """Policy and reference with heads, widths and caps of their own; statistics in any combination."""
    g = torch.Generator().manual_seed(seed)
    head, ref_head = with_gradients(draw_head(g, v, d, **ours)), draw_head(g, v, d_ref, **theirs)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64, requires_grad=True)
    ref_hidden = torch.randn(n, d_ref, generator=g, dtype=torch.float64)
    ids = torch.randint(v, (n, 2), generator=g)
    flags = {name: name in wanted for name in ("entropy", "log_collision", "forward_kl", "reverse_kl")}
    reference = FromHidden(ref_head, ref_hidden)
    got = sparse_scores(
        head, hidden, ids, reference=reference, chunk=chunk, columns=columns, **flags
    )._asdict()
    log_q = torch.log_softmax(naive_logits(head, hidden), -1)
    log_p = torch.log_softmax(naive_logits(ref_head, ref_hidden), -1)
    want = {
        "logp": log_q.gather(-1, ids),
        "entropy": -(log_q.exp() * log_q).sum(-1),
        "log_collision": log_q.exp().square().sum(-1).log(),
        "forward_kl": naive_kl(log_p, log_q),
        "reverse_kl": naive_kl(log_q, log_p),
    }
    assert {name for name, value in got.items() if value is not None} == {"logp", *wanted}
    losses = []
    for values in (got, want):
        weights = torch.Generator().manual_seed(seed)
        losses.append(
            sum(
                (values[name] * torch.randn(want[name].shape, generator=weights, dtype=torch.float64)).sum()
                for name in sorted({"logp", *wanted})
            )
        )
    for name in wanted:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-9)
    inputs = parameters(head, hidden)
    pairs = zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True)
    for ours_, theirs_ in pairs:
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tiles", [{}, {"chunk": 2}, {"chunk": 2, "columns": 11}])
def test_a_policy_that_is_its_reference_diverges_by_nothing_and_is_pulled_nowhere(tiles):
    g = torch.Generator().manual_seed(0)
    head = with_gradients(draw_head(g, 50, 8, bias=True, scale=1.0, softcap=None))
    hidden = torch.randn(7, 8, generator=g, dtype=torch.float64, requires_grad=True)
    reference = FromHidden(head, hidden.detach())
    scores = sparse_scores(
        head, hidden, torch.zeros(7, 1).long(), reference=reference, forward_kl=True, reverse_kl=True, **tiles
    )
    for value in (scores.forward_kl, scores.reverse_kl):
        assert value.abs().max() < 1e-14
        for gradient in torch.autograd.grad(value.sum(), parameters(head, hidden), retain_graph=True):
            assert gradient.abs().max() < 1e-14


def test_peaked_distributions_and_tokens_that_neither_can_say_stay_finite():
    """Logits of 1e4 underflow every other probability; a vocabulary padded with -inf has tokens of none."""
    head = Head(torch.eye(4) * 1e4, torch.tensor([0.0, 0.0, 0.0, -torch.inf]))
    hidden = torch.eye(4)[:2].requires_grad_()
    reference = FromHidden(head, torch.eye(4)[:2].flip(0))  # sure of another token than the policy is
    scores = sparse_scores(
        head,
        hidden,
        torch.zeros(2, 1).long(),
        reference=reference,
        entropy=True,
        forward_kl=True,
        reverse_kl=True,
    )
    loss = scores.entropy.sum() + scores.forward_kl.sum() + scores.reverse_kl.sum()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert scores.forward_kl.isfinite().all()
    assert scores.reverse_kl.isfinite().all()
    torch.testing.assert_close(scores.forward_kl, torch.full((2,), 1e4))
    assert gradient.isfinite().all()


def test_float32_is_within_1e_5_of_float64():
    g = torch.Generator().manual_seed(3)
    head, ref_head = (draw_head(g, 5000, 64, bias=False, scale=1.0, softcap=None) for _ in range(2))
    hidden, ref_hidden = (torch.randn(20, 64, generator=g, dtype=torch.float64) * 0.3 for _ in range(2))
    ids = torch.zeros(20, 1).long()

    def run(dtype):
        return sparse_scores(
            Head(head.weight.to(dtype)),
            hidden.to(dtype),
            ids,
            reference=FromHidden(Head(ref_head.weight.to(dtype)), ref_hidden.to(dtype)),
            forward_kl=True,
            reverse_kl=True,
        )

    low, high = run(torch.float32), run(torch.float64)
    torch.testing.assert_close(low.forward_kl.double(), high.forward_kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low.reverse_kl.double(), high.reverse_kl, rtol=1e-5, atol=1e-5)


def test_autocast_rounds_the_policys_products_and_nothing_of_the_reference():
    g = torch.Generator().manual_seed(4)
    head = draw_head(g, 300, 32, bias=False, scale=1.0, softcap=None)
    head = Head(head.weight.float())
    hidden, ref_hidden = (torch.randn(6, 32, generator=g) for _ in range(2))
    ids = torch.randint(300, (6, 1), generator=g)
    reference = FromHidden(head, ref_hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = sparse_scores(head, hidden, ids, reference=reference, forward_kl=True)
    low = Head(head.weight.bfloat16().float())
    same = sparse_scores(low, hidden.bfloat16().float(), ids, reference=reference, forward_kl=True)
    torch.testing.assert_close(scores.logp, same.logp)
    torch.testing.assert_close(scores.forward_kl, same.forward_kl)


def test_a_divergence_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        sparse_scores(Head(torch.eye(3)), torch.eye(3), torch.zeros(3, 1).long(), reverse_kl=True)


def test_a_whole_distribution_in_float16_gives_both_divergences():
    """What float16 rounds off the log-probs is seen in neither sum of probabilities, only in each of them."""
    g = torch.Generator().manual_seed(5)
    log_p, z = (torch.randn(40, 64, generator=g) * 2 for _ in range(2))
    log_p = torch.log_softmax(log_p, -1)
    logp, ids = log_p.sort(-1, descending=True)
    reference = FromLogProbs.of(ids, logp.half().float())
    hidden = (log_p + 0.1 * z).requires_grad_()
    scores = sparse_scores(
        Head(torch.eye(64)), hidden, ids[:, :1], reference=reference, forward_kl=True, reverse_kl=True
    )
    log_q = torch.log_softmax(hidden, -1)
    torch.testing.assert_close(scores.forward_kl, naive_kl(log_p, log_q), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(scores.reverse_kl, naive_kl(log_q, log_p), rtol=1e-2, atol=1e-5)
    mask = torch.ones(1, 40, dtype=torch.bool)
    summed = forward_kl(logp[None], log_q.gather(-1, ids)[None], 64, mask, vocab_size=64)[0]
    torch.testing.assert_close(scores.forward_kl, summed, rtol=1e-2, atol=1e-5)


# Through the cache: built, read back, scored; against both models with full logits.

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
HEADS = {
    "untied": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "biased": ("Phi", {}),
    "soft-capped": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 4.0}),
    "scaled down": ("Granite", {"logits_scaling": 3.0}),
    "scaled up": ("Cohere", {"logit_scale": 0.5}),
}


def make(kind, seed=0):
    import transformers

    family, options = HEADS[kind]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * 0.3
    return model


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def moved(model, by, seed=1):
    """A policy that has left its reference."""
    policy = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in policy.parameters():
            parameter += by * parameter.std() * torch.randn_like(parameter)
    return policy


def full_log_probs(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.log_softmax(logits.reshape(-1, logits.shape[-1])[batch["score_positions"]], -1)


def online(policy, reference, batch):
    """Both divergences [N] with both models in memory."""
    with torch.no_grad():
        log_p = full_log_probs(reference, batch)
    log_q = full_log_probs(policy, batch)
    return naive_kl(log_p, log_q), naive_kl(log_q, log_p)


def from_cache(policy, reader, batch):
    """Both divergences [N] from the cache, through the forward that a fit calls."""
    exact = ExactDivergences.of(reader, frozenset({"forward_kl", "reverse_kl"}))
    scored = copy.deepcopy(policy)
    enable_scoring(scored, exact.head)
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask", "score_positions")}
    scores = scored(**arguments, **exact.arguments(batch))
    return scored, scores.forward_kl, scores.reverse_kl


def gradients_of(model, values):
    weights = torch.Generator().manual_seed(9)
    loss = sum((value * torch.randn(value.shape, generator=weights)).sum() for value in values)
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.fixture(scope="module", params=HEADS)
def built(request, tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    model = make(request.param)
    save(model, folder / "ref")
    reader = tdpo.build_cache(
        folder / "ref", pairs, folder / "cache", distribution="exact", limit=12, quiet=True
    )
    return model, reader


@pytest.mark.parametrize("by", [0.02, 0.5])
def test_divergences_from_the_cache_equal_those_of_two_models(built, by):
    reference, reader = built
    batch, policy = collate(list(reader)), moved(reference, by)
    want = online(policy, reference, batch)
    scored, *got = from_cache(policy, reader, batch)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients_of(scored, got), gradients_of(policy, want)
    largest = max(gradient.abs().max().item() for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * largest)
    assert want[0].mean() > 1e-4


def test_a_policy_that_is_the_cached_reference_has_no_divergence(built):
    reference, reader = built
    _, *got = from_cache(reference, reader, collate(list(reader)))
    for value in got:
        assert value.abs().max() < 1e-5


def test_verify_finds_no_fault_and_the_same_hidden_states_again(built):
    _, reader = built
    report = tdpo.verify_cache(reader.location, rescore=4, quiet=True)
    assert report.ok, report
    assert report.rescored.ref_hidden < 1e-4
