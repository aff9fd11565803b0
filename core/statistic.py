"""The statistic contract: new columns beside a cache, computed while its reference is in memory.

A plugin registers a statistic through the hook ``tdpo_statistics``; ``tdpo cache add DIR --name NAME
--statistic STATISTIC`` runs it over a finished cache, and an objective names its columns in ``needs``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..cache.pairs import SIDES, Pair
from ..cache.scores.sets import ScoreColumn as Column
from .options import check, hyperparameter
from .scoring.chunking import chunk_rows
from .scoring.forward import completion_hidden
from .scoring.head import Head
from .scoring.layout import lay_out
from .scoring.projection import compute_dtype
from .scoring.sparse import logit_chunks

__all__ = ["Column", "ReferenceTokens", "Statistic", "TokenStatistic", "hidden_states", "hyperparameter"]


@dataclass(frozen=True)
class Statistic(ABC):
    """Columns to add to a cache. Subclass as a frozen dataclass whose fields are ``hyperparameter`` s.

    What is cached must be raw: nothing that depends on how a policy will be trained.
    """

    columns: ClassVar[Mapping[str, Column]] = {}
    """Name -> shape (``token``, ``entries``, ``completion`` or ``pair``), dtype and what it is."""
    needs_model: ClassVar[bool] = True
    """False for what the token ids alone say: then no model is loaded, and ``model`` is None. A property
    where it depends on the options."""
    needs_tokenizer: ClassVar[bool] = False
    """True for what reads texts without the cache's model: then ``tokenizer`` is there all the same."""

    def __post_init__(self) -> None:
        check(self, f"{type(self).__name__}: ")

    def identity(self) -> dict[str, Any]:
        """What proves what the values come from beside the reference and the options, such as other weights.

        JSON's types. It is kept in the manifest, and what is there from something else is not added to.
        """
        return {}

    @abstractmethod
    def compute(self, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Mapping[str, Sequence[Any]]:
        """The columns' values for a batch of pairs, under ``torch.inference_mode``.

        Args:
            model: the cache's reference (a transformers causal language model), in evaluation mode, on its
                device; the model of ``--ref`` where that was given.
            tokenizer: its tokenizer; None without a model, unless ``needs_tokenizer``.
            pairs: token ids, of about the same length.

        Returns:
            ``chosen_NAME`` and ``rejected_NAME``, or ``NAME`` for a column of the pair -> one tensor or array
            a pair, in the order of ``pairs``: [T] for ``token``, [T, n] for ``entries``, [d] for the others.
        """


@dataclass(frozen=True)
class ReferenceTokens:
    """The reference at the ``N`` completion tokens of a batch, both sides."""

    hidden: Tensor
    """[N, d]: the last hidden state that predicts each token."""
    labels: Tensor
    """[N] int64: the tokens."""
    head: Head
    """What makes logits of hidden states."""

    def log_probs(self) -> Iterator[tuple[slice, Tensor]]:
        """``(rows, log_probs [C, V])`` over all tokens, in nats; only one chunk exists at a time."""
        dtype = compute_dtype(self.hidden, self.head.weight)
        for rows, z in logit_chunks(self.head, self.hidden, chunk_rows(self.head), dtype):
            yield rows, z.sub_(torch.logsumexp(z, -1, keepdim=True))


@dataclass(frozen=True)
class TokenStatistic(Statistic):
    """A statistic of each completion token, from the reference's hidden states and output head."""

    @abstractmethod
    def values(self, tokens: ReferenceTokens) -> Mapping[str, Tensor]:
        """Column -> its values: [N] for ``token``, [N, n] for ``entries``."""

    def compute(self, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Mapping[str, Sequence[Any]]:
        """Run the reference over the batch and cut :meth:`values` into completions."""
        layout = lay_out(pairs)
        hidden = completion_hidden(model, **layout.model_inputs(model.device))
        found = self.values(ReferenceTokens(hidden, layout.labels.to(hidden.device), Head.of(model)))
        columns: dict[str, Sequence[Any]] = {}
        for name, flat in found.items():
            pieces = flat.split(layout.lengths.tolist())
            for at, side in enumerate(SIDES):
                columns[f"{side}_{name}"] = pieces[at * len(pairs) : (at + 1) * len(pairs)]
        return columns


def hidden_states(model: Any, sequences: Sequence[Any]) -> list[Tensor]:
    """Last hidden states [L, d] of each sequence of token ids [L] under a causal language model's body."""
    lengths = [len(ids) for ids in sequences]
    input_ids = torch.zeros(len(lengths), max(1, *lengths), dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    output = model.base_model(
        input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    )
    return [states[:length] for states, length in zip(output.last_hidden_state, lengths, strict=True)]
