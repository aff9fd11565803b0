"""Which tokens of shared and packed rows see which, as the mask that an attention backend takes.

A token sees those before it in its own document, but for rejected tokens, which do not see chosen ones. Said
by a tensor of ``segments``, see :class:`~tdpo.core.scoring.layout.Layout`.
"""

from typing import Any

import torch
from torch import Tensor

# What the last two bits of a segment say; the others are the document's number.
PROMPT, CHOSEN, REJECTED = 0, 1, 2

# Tokens of a side of FlexAttention's blocks.
BLOCK = 128


def visible(query: Tensor, key: Tensor) -> Tensor:
    """Whether tokens of one segment may see those of another before them; elementwise, bool."""
    return (query >> 2 == key >> 2) & ~((query & 3 == REJECTED) & (key & 3 == CHOSEN))


def attention_mask_of(segments: Tensor, attention: str | None, dtype: torch.dtype) -> Any:
    """The mask that the backend ``attention`` takes for rows of ``segments`` [R, L] int64."""
    return block_mask(segments) if attention == "flex_attention" else dense_mask(segments, dtype)


def dense_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores [R, 1, L, L]: 0 where a token sees another, else the least number."""
    at = torch.arange(segments.shape[1], device=segments.device)
    hidden = ~visible(segments[:, :, None], segments[:, None, :]) | (at[:, None] < at)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def block_mask(segments: Tensor) -> Any:
    """The same for FlexAttention, without L * L of anything: which blocks to visit, and what to hide there.

    torch's create_block_mask would find the blocks by trying every pair of tokens.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def see(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & visible(segments[row, query], segments[row, key])

    # Half the bytes for the kernel to read.
    segments = segments.int()
    partial, full = (_in_order(blocks[:, None]) for blocks in _blocks(segments))
    width = segments.shape[1]
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=BLOCK, mask_mod=see, seq_lengths=(width, width)
    )


def _blocks(segments: Tensor) -> tuple[Tensor, Tensor]:
    """[R, Q, K] bool: blocks where some tokens may see some, and those where all see all."""
    padding = -segments.shape[1] % BLOCK
    # One document more: what reaches past the row's end is not full.
    more = ((segments[:, -1:] >> 2) + 1) << 2
    blocks = torch.cat([segments, more.expand(-1, padding)], dim=1).unflatten(1, (-1, BLOCK))
    first, last = blocks[..., 0] >> 2, blocks[..., -1] >> 2
    chosen, rejected = blocks & 3 == CHOSEN, blocks & 3 == REJECTED
    at = torch.arange(blocks.shape[1], device=segments.device)
    # Documents rise along a row: those of two blocks meet where their ranges do.
    meet = (first[:, :, None] <= last[:, None, :]) & (first[:, None, :] <= last[:, :, None])
    alone = first == last
    same = alone[:, :, None] & alone[:, None, :] & meet
    never = same & rejected.all(-1)[:, :, None] & chosen.all(-1)[:, None, :]
    some = meet & ~never & (at[:, None] >= at)
    hides = rejected.any(-1)[:, :, None] & chosen.any(-1)[:, None, :]
    full = same & ~hides & (at[:, None] > at)
    return some & ~full, full


def _in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks a query block visits [..., Q], and which, those first [..., Q, K]; int32."""
    numbers = blocks.sum(-1, dtype=torch.int32)
    return numbers, blocks.int().argsort(dim=-1, descending=True, stable=True).int()
