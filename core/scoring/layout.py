"""How pairs become one batch of token ids, and where in it the completions are scored.

A layout of ``B`` pairs holds their ``2 B`` completions, all chosen before all rejected. "Flat" below means
one row per completion token of the batch, completion after completion in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...cache.pairs import Pair


@dataclass(frozen=True)
class Layout:
    """A batch of pairs as separate sequences ``prompt | completion``, right-padded."""

    input_ids: Tensor
    """[2B, L] int64."""
    attention_mask: Tensor
    """[2B, L] int64, 0 at padding."""
    positions: Tensor
    """[N] int64 into the flattened [2B * L]: the position whose hidden state predicts each completion
    token. The first is the last prompt token's."""
    labels: Tensor
    """[N] int64: the completion tokens."""
    lengths: Tensor
    """[2B] int64: completion tokens of each sequence."""


def lay_out(pairs: Sequence[Pair], pad_id: int = 0) -> Layout:
    """The layout of ``pairs``; ``pad_id`` is any id of the vocabulary, padding is masked."""
    sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [
        (p.prompt_ids, p.rejected_ids) for p in pairs
    ]
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    positions = []
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : end] = completion
        mask[row, :end] = 1
        positions.append(np.arange(len(prompt) - 1, end - 1) + row * width)
    completions = [completion for _, completion in sequences]
    return Layout(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(completions).astype(np.int64)),
        torch.tensor([len(c) for c in completions]),
    )


def completion_mask(lengths: Tensor) -> Tensor:
    """[2B, T] bool, True at completion tokens, for completion ``lengths`` [2B]."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def to_padded(flat: Tensor, mask: Tensor) -> Tensor:
    """Flat rows [N, ...] as right-padded completions [2B, T, ...], zero at padding; differentiable."""
    padded = flat.new_zeros((*mask.shape, *flat.shape[1:]))
    return padded.masked_scatter(mask.reshape(*mask.shape, *[1] * (flat.dim() - 1)), flat)
