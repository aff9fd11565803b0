"""What the output head costs: arithmetic counted by operation, memory by every tensor that is made."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tdpo.core.scoring import chunking
from tdpo.core.scoring.adapted import LowRank
from tdpo.core.scoring.chunking import chunk_rows, head_memory, tiles
from tdpo.core.scoring.head import Head
from tdpo.core.scoring.sparse import sparse_scores

N, D, V, R = 96, 24, 20_000, 3
# Multiplications and additions of all logits, once.
ONCE = 2 * N * D * V
LOW_RANK = 2 * N * R * V


class Memory(TorchDispatchMode):
    """Sees every tensor that an operation makes: bytes alive at once at most, and the shapes."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.made = []
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.add(tensor.untyped_storage())
        result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                weakref.finalize(storage, self._freed, size)
                self.alive += size
                self.peak = max(self.peak, self.alive)
                self.made.append((tuple(tensor.shape), tensor.dtype))
        return result

    def _freed(self, size):
        self.alive -= size


def head_and_hidden(dtype=torch.float32, *, trained=True, body=True, rank=0, n=N, v=V, d=D):
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(v, d, generator=g) / d**0.5).to(dtype).requires_grad_(trained)
    hidden = torch.randn(n, d, generator=g).to(dtype).requires_grad_(body)
    adapter = LowRank(torch.randn(rank, d, generator=g), torch.randn(v, rank, generator=g))
    if rank:
        adapter.a.requires_grad_()
        adapter.b.requires_grad_()
    ids = torch.randint(v, (n, 4), generator=g)
    return Head(weight, adapters=(adapter,) if rank else ()), hidden, ids


def flops(head, hidden, ids, chunk):
    """Of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as forward:
        loss = sparse_scores(head, hidden, ids, entropy=True, chunk=chunk).logp.sum()
    with FlopCounterMode(display=False) as backward:
        if loss.requires_grad:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("trained", "body", "back"),
    [(True, True, 3), (False, True, 2), (True, False, 2), (False, False, 0)],
)
def test_backward_pays_for_the_logits_and_for_each_gradient_that_is_wanted(dtype, trained, body, back):
    head, hidden, ids = head_and_hidden(dtype, trained=trained, body=body)
    assert flops(head, hidden, ids, chunk=40) == (ONCE, back * ONCE)


@pytest.mark.parametrize(("trained", "back"), [(True, 2), (False, 1)])
def test_logits_that_fit_a_chunk_are_not_computed_again(trained, back):
    head, hidden, ids = head_and_hidden(trained=trained)
    assert flops(head, hidden, ids, chunk=N) == (ONCE, back * ONCE)


@pytest.mark.parametrize(("body", "back"), [(True, 2), (False, 1)])
def test_a_lora_on_a_frozen_head_adds_its_rank_and_no_weight_gradient(body, back):
    head, hidden, ids = head_and_hidden(trained=False, body=body, rank=R)
    narrow = 2 * N * R * D
    # To the narrow part and from it to the logits; back: logits again, then gradients of both factors.
    back_narrow = (2 if body else 1) * narrow
    assert flops(head, hidden, ids, chunk=40) == (
        ONCE + LOW_RANK + narrow,
        back * ONCE + 3 * LOW_RANK + back_narrow,
    )


def made_by(head, hidden, ids, chunk, columns=None):
    with Memory() as memory:
        scores = sparse_scores(head, hidden, ids, entropy=True, chunk=chunk, columns=columns)
        scores.logp.sum().backward()
    return memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, R])
def test_a_frozen_head_makes_nothing_of_its_own_size(dtype, rank):
    head, hidden, ids = head_and_hidden(dtype, trained=False, rank=rank)
    memory = made_by(head, hidden, ids, chunk=8, columns=2000)
    assert max(torch.Size(shape).numel() for shape, _ in memory.made) < V * D


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_head_makes_its_gradient_once_in_its_own_precision(dtype):
    head, hidden, ids = head_and_hidden(dtype)
    memory = made_by(head, hidden, ids, chunk=8, columns=2000)
    assert [made for made in memory.made if torch.Size(made[0]).numel() >= V * D] == [((V, D), dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_logits_never_exist(dtype):
    head, hidden, ids = head_and_hidden(dtype)
    memory = made_by(head, hidden, ids, chunk=8)
    assert max(torch.Size(shape).numel() for shape, _ in memory.made) < N * V / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_embeddings_gradient_is_added_to_the_heads_where_it_lies(dtype):
    head, _, ids = head_and_hidden(dtype)
    hidden = torch.nn.functional.embedding(ids[:, 0], head.weight)
    logp = sparse_scores(head, hidden, ids, chunk=8).logp
    places = []
    logp.grad_fn.register_hook(lambda made, _: places.append(made[1].data_ptr()))
    logp.sum().backward()
    assert places == [head.weight.grad.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("n", "v", "d"), [(64, 40_000, 64), (500, 20_000, 48), (3000, 3000, 16)])
def test_the_memory_that_is_told_is_the_memory_that_is_taken(dtype, trained, n, v, d):
    head, hidden, ids = head_and_hidden(dtype, trained=trained, n=n, v=v, d=d)
    for accumulating in (False, True):
        with Memory() as memory:
            sparse_scores(head, hidden, ids, entropy=True).logp.sum().backward()
        # The first gradient stays; a later one is added to it.
        stays = v * d * dtype.itemsize if trained and not accumulating else 0
        told = head_memory(head, n, accumulating=accumulating)
        assert 0.9 * told <= memory.peak <= 1.1 * told + stays


def test_a_chunk_shrinks_with_what_is_free_and_only_by_halves():
    head = Head(torch.empty(32_000, 0))
    most = chunk_rows(head, free=64 << 30)
    assert most == (32 << 20) // (4 * 32_000)
    assert chunk_rows(head, free=63 << 30) == most
    scarce = [chunk_rows(head, free=free << 20) for free in (300, 255, 200, 120, 60, 1)]
    assert scarce == [most, most // 2, most // 2, most // 4, most // 8, 16]
    gpu = chunk_rows(head, free=64 << 30, device=torch.device("cuda"))
    assert gpu == (512 << 20) // (4 * 32_000)


def test_processes_that_share_a_machine_share_what_is_free(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = chunking.free_bytes(device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert chunking.free_bytes(device) < alone / 16


def test_a_containers_limit_counts(tmp_path):
    assert chunking._left_to_container(tmp_path) > 1 << 50
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")
    assert chunking._left_to_container(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert chunking._left_to_container(tmp_path) > 1 << 50


def test_the_way_back_takes_all_positions_of_as_much_vocabulary_as_fits():
    assert tiles(chunk=256, positions=1024, vocab_size=32_000) == (1024, 8000)
    assert tiles(chunk=256, positions=100, vocab_size=32_000) == (100, 32_000)
    assert tiles(chunk=256, positions=100, vocab_size=32_000, summed=1000) == (100, 2048)
    rows, columns = tiles(chunk=16, positions=1_000_000, vocab_size=32_000)
    assert columns == 1024
    assert rows == 16 * 32_000 // 1024
    assert tiles(chunk=16, positions=0, vocab_size=300) == (1, 300)
