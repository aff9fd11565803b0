"""The output head on a GPU: judged against float64 on a CPU, and by the memory it takes."""

import pytest
import torch

from tdpo.core.scoring.adapted import LowRank
from tdpo.core.scoring.chunking import chunk_rows, head_memory
from tdpo.core.scoring.exact import FromHidden
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.sparse import sparse_scores

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def drawn(n, d, v, *, bias=False, rank=0, seed=0):
    """Parameters of a head, hidden states and ids in float64, of values that bfloat16 holds exactly."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=g)).bfloat16().double()

    parts = {"hidden": normal(n, d), "weight": normal(v, d, scale=d**-0.5)}
    if bias:
        parts["bias"] = normal(v)
    if rank:
        parts |= {"a": normal(rank, d, scale=d**-0.5), "b": normal(v, rank, scale=0.3)}
    return parts, torch.randint(v, (n, 5), generator=g)


def results(parts, ids, device, dtype, *, frozen=(), scale=1.0, softcap=None, exact=False, **options):
    """Values and gradients of a loss that takes every statistic."""
    at = {name: value.to(device, dtype).requires_grad_(name not in frozen) for name, value in parts.items()}
    adapters = (LowRank(at["a"], at["b"], 0.5),) if "a" in at else ()
    head = Head(at["weight"], at.get("bias"), scale, softcap, adapters)
    if exact:
        reference = Head(at["weight"].detach().flip(0))
        options |= {"reference": FromHidden(reference, at["hidden"].detach()), "forward_kl": True}
    scores = sparse_scores(head, at["hidden"], ids.to(device), entropy=True, log_collision=True, **options)
    values = [value for value in scores if value is not None]
    loss = sum((value * (index + 1)).sum() for index, value in enumerate(values))
    inputs = [value for value in at.values() if value.requires_grad]
    return [result.detach().double().cpu() for result in (*values, *torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frozen": ("weight",)},
        {"scale": 0.25, "softcap": 5.0},
        {"exact": True},
        {"chunk": 37},
        {"chunk": 37, "columns": 411},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize(("bias", "rank"), [(False, 0), (True, 3)])
def test_values_and_gradients_are_those_of_float64_on_a_cpu(dtype, options, bias, rank):
    parts, ids = drawn(101, 67, 1237, bias=bias, rank=rank)
    want = results(parts, ids, "cpu", torch.float64, **{**options, "chunk": None, "columns": None})
    got = results(parts, ids, "cuda", dtype, **options)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= TOLERANCE[dtype] * b.norm()


def test_autocast_is_no_less_exact_than_full_logits():
    parts, ids = drawn(128, 256, 4096)
    hidden, weight = (parts[name].cuda().float() for name in ("hidden", "weight"))
    truth = torch.log_softmax(parts["hidden"] @ parts["weight"].T, -1).gather(-1, ids)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        ours = sparse_scores(Head(weight), hidden, ids.cuda()).logp
        full = torch.log_softmax((hidden @ weight.T).float(), -1).gather(-1, ids.cuda())
    assert ours.dtype == torch.float32
    assert (ours.double().cpu() - truth).norm() <= (full.double().cpu() - truth).norm()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_logits_never_exist_and_the_memory_is_what_was_told(dtype, trained):
    n, d, v = 8192, 512, 64_000
    weight = (torch.randn(v, d, device="cuda") / d**0.5).to(dtype).requires_grad_(trained)
    hidden = torch.randn(n, d, device="cuda").to(dtype).requires_grad_()
    ids = torch.randint(v, (n, 17), device="cuda")
    head = Head(weight)
    # What the libraries keep for themselves is taken before the count.
    sparse_scores(head, hidden, ids, entropy=True).logp.sum().backward()
    weight.grad = hidden.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sparse_scores(head, hidden, ids, entropy=True).logp.sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    told = head_memory(head, n) + (weight.numel() * weight.element_size() if trained else 0)
    assert taken < n * v * 4
    assert 0.6 * told <= taken <= 1.15 * told


def test_a_chunk_shrinks_with_the_memory_that_is_left():
    head = Head(torch.empty(128_000, 1, device="cuda"))
    assert chunk_rows(head) == (512 << 20) // (4 * 128_000)
    free = torch.cuda.mem_get_info()[0]
    filler = torch.empty(max(0, free - (1 << 30)), dtype=torch.uint8, device="cuda")
    assert 16 <= chunk_rows(head) < (512 << 20) // (4 * 128_000)
    del filler
    # Memory that the allocator holds unused counts as free.
    assert chunk_rows(head) == (512 << 20) // (4 * 128_000)
