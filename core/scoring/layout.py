"""How pairs become one batch of token ids, and where in it the completions are scored.

A layout of ``B`` pairs holds their ``2 B`` completions, all chosen before all rejected. "Flat" below means
one row per completion token of the batch, completion after completion in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...cache.pairs import SIDES, Pair


@dataclass(frozen=True)
class Layout:
    """A batch of pairs as ``R`` right-padded rows of token ids.

    Separate: a row is ``prompt | completion``, 2B of them. Shared: a row is ``prompt | chosen | rejected``, B
    of them, and what a model needs besides is ``position_ids`` and ``branches``.
    """

    input_ids: Tensor
    """[R, L] int64."""
    attention_mask: Tensor
    """[R, L] int64, 0 at padding."""
    positions: Tensor
    """[N] int64 into the flattened [R * L]: the position whose hidden state predicts each completion
    token. The first is the last prompt token's."""
    labels: Tensor
    """[N] int64: the completion tokens."""
    lengths: Tensor
    """[2B] int64: completion tokens of each side."""
    position_ids: Tensor | None = None
    """Shared: [B, L] int64, going on from the prompt in either completion; 0 at padding."""
    branches: Tensor | None = None
    """Shared: [B, 2] int64, where a row's chosen and its rejected tokens begin."""

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What :func:`~tdpo.core.scoring.forward.completion_hidden` takes, on ``device``."""
        names = ("input_ids", "attention_mask", "positions", "position_ids", "branches")
        inputs = {name: getattr(self, name) for name in names}
        return {name: value.to(device) for name, value in inputs.items() if value is not None}


def separate_width(pair: Pair) -> int:
    """Tokens of a pair's longer row when its sides are separate."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def shared_width(pair: Pair) -> int:
    """Tokens of a pair's row when its sides share the prompt.

    A completion's last token predicts nothing that is scored, and is left out.
    """
    return len(pair.prompt_ids) + pair.completion_tokens - 2


def lay_out(pairs: Sequence[Pair], pad_id: int = 0) -> Layout:
    """``pairs`` as separate sequences; ``pad_id`` is any id of the vocabulary, padding is masked."""
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
    return Layout(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(np.concatenate(positions)),
        *_targets(pairs),
    )


def lay_out_shared(pairs: Sequence[Pair], pad_id: int = 0) -> Layout:
    """``pairs`` as one row each, the prompt once."""
    width = max(shared_width(pair) for pair in pairs)
    ids = np.full((len(pairs), width), pad_id, dtype=np.int64)
    mask, position_ids = np.zeros_like(ids), np.zeros_like(ids)
    branches = np.empty((len(pairs), 2), dtype=np.int64)
    of_chosen, of_rejected = [], []
    for row, pair in enumerate(pairs):
        prompt, end = len(pair.prompt_ids), shared_width(pair)
        second = prompt + len(pair.chosen_ids) - 1
        ids[row, :prompt] = pair.prompt_ids
        ids[row, prompt:second] = pair.chosen_ids[:-1]
        ids[row, second:end] = pair.rejected_ids[:-1]
        mask[row, :end] = 1
        position_ids[row, :second] = np.arange(second)
        position_ids[row, second:end] = np.arange(prompt, prompt + end - second)
        branches[row] = prompt, second
        of_chosen.append(np.arange(prompt - 1, second) + row * width)
        # The last prompt token predicts the first token of both.
        of_rejected.append(np.r_[prompt - 1, second:end] + row * width)
    return Layout(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(np.concatenate(of_chosen + of_rejected)),
        *_targets(pairs),
        torch.from_numpy(position_ids),
        torch.from_numpy(branches),
    )


def _targets(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """``labels`` and ``lengths`` of either layout."""
    completions = [pair.ids(side) for side in SIDES for pair in pairs]
    labels = np.concatenate(completions).astype(np.int64)
    return torch.from_numpy(labels), torch.tensor([len(c) for c in completions])


def branch_mask(branches: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores in shared rows, [B, 1, L, L]: 0 where a token sees another, else the
    least number of ``dtype``.

    Causal, but for rejected tokens, which do not see chosen ones. Padding comes last: no token sees it.
    """
    at = torch.arange(width, device=branches.device)
    chosen, rejected = branches[:, 0, None], branches[:, 1, None]
    hidden = (at >= rejected)[:, :, None] & ((at >= chosen) & (at < rejected))[:, None, :]
    hidden |= at[:, None] < at
    mask = torch.zeros(hidden.shape, dtype=dtype, device=branches.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def completion_mask(lengths: Tensor) -> Tensor:
    """[2B, T] bool, True at completion tokens, for completion ``lengths`` [2B]."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def to_padded(flat: Tensor, mask: Tensor) -> Tensor:
    """Flat rows [N, ...] as right-padded completions [2B, T, ...], zero at padding; differentiable."""
    padded = flat.new_zeros((*mask.shape, *flat.shape[1:]))
    return padded.masked_scatter(mask.reshape(*mask.shape, *[1] * (flat.dim() - 1)), flat)
