"""How pairs become one batch of token ids, and where in it the completions are scored.

A layout of ``B`` pairs holds their ``2 B`` completions, all chosen before all rejected. "Flat" below means
one row per completion token of the batch, completion after completion in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...cache.pairs import SIDES, Pair, Side
from .visibility import CHOSEN, PROMPT, REJECTED

IntArray = np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Layout:
    """A batch of pairs as ``R`` right-padded rows of token ids.

    Separate: a row is ``prompt | completion``, 2B of them. Shared: a row is ``prompt | chosen | rejected``, B
    of them. Packed: rows of either kind one after another, each a document of its own. What a model needs of
    the last two besides is ``position_ids`` and ``segments``.
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
    """[2B] int64: completion tokens of each side; [R] of sequences that are no pairs."""
    position_ids: Tensor | None = None
    """[R, L] int64, of a document: going on from the prompt in either completion; 0 at padding."""
    segments: Tensor | None = None
    """[R, L] int64, which tokens see which: 4 times the number of a token's document in its row, which rises
    along it, plus 0 in the prompt, 1 in chosen, 2 in rejected. Padding is the last document."""

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """What :func:`~tdpo.core.scoring.forward.completion_hidden` takes, on ``device``."""
        names = ("input_ids", "attention_mask", "positions", "position_ids", "segments")
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
    return lay_out_sequences([(p.prompt_ids, p.ids(side)) for side in SIDES for p in pairs], pad_id)


def lay_out_sequences(sequences: Sequence[tuple[IntArray, IntArray]], pad_id: int = 0) -> Layout:
    """Prompts with a completion each, a row a sequence: completions that are no sides of pairs."""
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
        *_targets([completion for _, completion in sequences]),
    )


def lay_out_shared(pairs: Sequence[Pair], pad_id: int = 0) -> Layout:
    """``pairs`` as one row each, the prompt once."""
    return _lay_out_documents([[_shared_document(pair)] for pair in pairs], pairs, pad_id)


def lay_out_packed(
    pairs: Sequence[Pair], pad_id: int = 0, *, share: bool = True, multiple: int = 1
) -> Layout:
    """``pairs`` in a single row, one after another.

    Args:
        pairs: their order is kept.
        pad_id: any id of the vocabulary.
        share: a pair is one document, its prompt once; otherwise either side is one.
        multiple: the row's length is padded to a multiple of this.
    """
    documents = [doc for p in pairs for doc in ([_shared_document(p)] if share else _separate_documents(p))]
    return _lay_out_documents([documents], pairs, pad_id, multiple)


@dataclass(frozen=True)
class _Document:
    """Tokens that see one another and no others."""

    ids: np.ndarray
    position_ids: np.ndarray
    branches: np.ndarray
    """PROMPT, CHOSEN or REJECTED; of tokens that no branch is to be hidden from, PROMPT."""
    scored: dict[Side, np.ndarray]
    """The positions that predict a side's tokens, for the sides that it holds."""


def _shared_document(pair: Pair) -> _Document:
    prompt, end = len(pair.prompt_ids), shared_width(pair)
    second = prompt + len(pair.chosen_ids) - 1
    return _Document(
        np.concatenate([pair.prompt_ids, pair.chosen_ids[:-1], pair.rejected_ids[:-1]]),
        np.r_[:second, prompt : prompt + end - second],
        np.repeat([PROMPT, CHOSEN, REJECTED], [prompt, second - prompt, end - second]),
        # The last prompt token predicts the first token of both.
        {"chosen": np.r_[prompt - 1 : second], "rejected": np.r_[prompt - 1, second:end]},
    )


def _separate_documents(pair: Pair) -> list[_Document]:
    documents = []
    for side in SIDES:
        ids = np.concatenate([pair.prompt_ids, pair.ids(side)[:-1]])
        scored = np.r_[len(pair.prompt_ids) - 1 : len(ids)]
        documents.append(_Document(ids, np.arange(len(ids)), np.full_like(ids, PROMPT), {side: scored}))
    return documents


def _lay_out_documents(
    rows: Sequence[Sequence[_Document]], pairs: Sequence[Pair], pad_id: int, multiple: int = 1
) -> Layout:
    """``rows`` of documents, in the order of ``pairs``, which they hold."""
    width = max(sum(len(document.ids) for document in row) for row in rows)
    width += -width % multiple
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask, position_ids, segments = np.zeros_like(ids), np.zeros_like(ids), np.empty_like(ids)
    positions: dict[Side, list[np.ndarray]] = {side: [] for side in SIDES}
    for r, row in enumerate(rows):
        segments[r] = len(row) << 2
        start = 0
        for number, document in enumerate(row):
            at = slice(start, start + len(document.ids))
            ids[r, at], mask[r, at], position_ids[r, at] = document.ids, 1, document.position_ids
            segments[r, at] = (number << 2) + document.branches
            for side, scored in document.scored.items():
                positions[side].append(scored + (start + r * width))
            start = at.stop
    return Layout(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(np.concatenate([one for side in SIDES for one in positions[side]])),
        *_targets([pair.ids(side) for side in SIDES for pair in pairs]),
        torch.from_numpy(position_ids),
        torch.from_numpy(segments),
    )


def _targets(completions: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """``labels`` and ``lengths`` of either layout."""
    labels = np.concatenate(completions).astype(np.int64)
    return torch.from_numpy(labels), torch.tensor([len(c) for c in completions])


def completion_mask(lengths: Tensor) -> Tensor:
    """[2B, T] bool, True at completion tokens, for completion ``lengths`` [2B]."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def to_padded(flat: Tensor, mask: Tensor) -> Tensor:
    """Flat rows [N, ...] as right-padded completions [2B, T, ...], zero at padding; differentiable."""
    padded = flat.new_zeros((*mask.shape, *flat.shape[1:]))
    return padded.masked_scatter(mask.reshape(*mask.shape, *[1] * (flat.dim() - 1)), flat)
