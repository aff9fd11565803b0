"""How much of the logits [positions, vocabulary] exists at a time: less where memory is scarce."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .head import Head
from .projection import UPCAST_ROWS, accumulation_dtype

# Bytes of one chunk's logits: small enough to stay out of the peak, large enough to fill the matrix units.
_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
# One part in so many of the free memory: beside a chunk come its gradient, and whatever follows the head.
_FREE_SHARE = 8
_LEAST_ROWS = 16
# Of a backward tile, unless the vocabulary is smaller: narrower products leave the matrix units waiting.
_LEAST_COLUMNS = 1024
# Bytes of logits whose passes stay in the cache: of a core, or of a GPU.
_CACHED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


def chunk_rows(head: Head, *, free: int | None = None, device: torch.device | None = None) -> int:
    """Positions whose logits exist at a time.

    The budget is halved, from 32 MB on a CPU and 512 MB on a GPU, until it is an eighth of what is free: in
    powers of two, so that the next run chooses the same.

    Args:
        head: the output head.
        free: bytes free for this process on ``device``; asked of the machine when None.
        device: where the head will be, if it is not there yet.
    """
    device = device or head.weight.device
    if free is None:
        free = free_bytes(device)
    budget = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"])
    row = accumulation_dtype(head.weight.dtype).itemsize * head.vocab_size
    while budget > max(free // _FREE_SHARE, _LEAST_ROWS * row):
        budget //= 2
    return max(_LEAST_ROWS, budget // row)


def tiles(
    chunk: int, positions: int, vocab_size: int, *, summed: int = 0, columns: int | None = None
) -> tuple[int, int]:
    """Positions and tokens of the vocabulary whose logits exist at a time on the way back.

    All positions if they can be, so that a slice of the weight's gradient is finished at once, and as much
    of the vocabulary as the numbers of a ``chunk`` of whole rows leave; or ``columns`` of it.

    Args:
        chunk: positions of a chunk of whole rows.
        positions: N.
        vocab_size: V.
        summed: numbers in a row of the weight's gradient, d, where a slice of it is summed in float32 before
            it is rounded; such a slice gets a quarter of a chunk's room at most.
        columns: to be taken instead.
    """
    numbers = chunk * vocab_size
    if columns is None:
        columns = numbers // max(1, positions)
        if summed:
            columns = min(columns, numbers // (4 * summed))
        columns = max(_LEAST_COLUMNS, columns)
    columns = min(columns, vocab_size)
    return max(1, min(positions, numbers // columns)), columns


def head_memory(
    head: Head,
    positions: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    free: int | None = None,
    accumulating: bool = False,
) -> int:
    """Bytes that one call of the head takes at its peak, forward and backward.

    Left out are its parameters, their gradients, and the hidden states [N, d] that go in.

    Args:
        head: the output head; on the meta device where only its shapes are known. A weight that
            requires no gradient takes less.
        positions: N, the completion tokens of a micro-batch.
        device: where it will run, if the head is not there.
        dtype: of the matrix products: autocast's, or None for the weight's.
        free: see :func:`chunk_rows`.
        accumulating: whether gradients of earlier micro-batches are there already; this one's is then made
            beside them.
    """
    device = device or head.weight.device
    dtype = dtype or head.weight.dtype
    wide = accumulation_dtype(dtype)
    width, low, gpu = head.weight.shape[1], dtype != wide, device.type == "cuda"
    trained = head.weight.requires_grad
    summed = width if trained and head.weight.dtype != wide else 0
    chunk = chunk_rows(head, free=free, device=device)
    rows, columns = tiles(chunk, positions, head.vocab_size, summed=summed)
    chunked = min(chunk, positions) * head.vocab_size * wide.itemsize
    # A single chunk stays for the way back.
    logits = chunked if positions <= chunk else rows * columns * wide.itemsize
    forward = min(chunked, _CACHED_BYTES.get(device.type, _CACHED_BYTES["cpu"]))
    # The gradient of the hidden states where it is summed, and as it is handed on.
    backward = positions * width * (wide.itemsize + low * dtype.itemsize)
    backward += columns * summed * wide.itemsize
    if trained and accumulating:
        backward += head.weight.numel() * head.weight.dtype.itemsize
    if low and gpu:
        # The logits' gradient, rounded, and a product on its way to the sum.
        backward += rows * columns * dtype.itemsize + positions * width * wide.itemsize
    elif low:
        # The operands, upcast.
        upcast = min(UPCAST_ROWS, head.vocab_size) * width * wide.itemsize
        forward = max(forward, upcast) + positions * width * wide.itemsize
        backward += upcast + positions * width * wide.itemsize
    if head.weight.dtype != dtype:
        forward += head.weight.numel() * dtype.itemsize
        backward += columns * width * dtype.itemsize
    # A LoRA's input in its own precision waits for the way back.
    kept = sum(
        positions * width * low_rank.a.itemsize for low_rank in head.adapters if low_rank.a.dtype != dtype
    )
    return kept + max(chunked + forward, logits + backward)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on ``device``, where others that a launcher started share it."""
    local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        sharing = -(-local // max(1, torch.cuda.device_count()))
        return torch.cuda.mem_get_info(device)[0] // sharing + unused
    return min(_left_to_machine(), _left_to_container()) // local


def _left_to_machine(source: Path = Path("/proc/meminfo")) -> int:
    """Bytes that programs may still take; where the system does not say, all that the machine has."""
    try:
        lines = source.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes below the memory limit of the control group this process runs in; a lot where there is none."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    # Pages of files that were read are given up as soon as they are in the way.
    return max(0, limit - used + int(kept.get("inactive_file", 0)))


def steps(whole: int, step: int) -> Iterator[slice]:
    """``whole`` in slices of ``step``, the last one shorter."""
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole))


def cache_sized(z: Tensor) -> Iterator[slice]:
    """The rows of logits ``z`` [C, V] to walk over at a time: their passes stay in the cache."""
    budget = _CACHED_BYTES.get(z.device.type, _CACHED_BYTES["cpu"])
    return steps(len(z), max(1, budget // (z.element_size() * z.shape[-1])))
