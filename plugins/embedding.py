"""Embeddings of prompts, by which RPO (Yin et al., arXiv 2402.10958) tells which prompts are alike.

A statistic of the pair: ``tdpo cache add --name embedding --statistic prompt_embedding``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..cache.pairs import Pair
from ..core.scoring.embedding import TextEncoder, text_encoder
from ..core.statistic import Column, Statistic, hidden_states, hyperparameter


@dataclass(frozen=True)
class PromptEmbedding(Statistic):
    """Mean of the last hidden states over the prompt: the reference's, or an embedding model's.

    arXiv 2402.10958 takes a sentence-embedding model: ``--set model=sentence-transformers/all-MiniLM-L6-v2``.
    It is given the prompt's text, special tokens left out, and averages over its own tokens.
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "prompt_embedding": Column("pair", doc="[d] mean last hidden state over the prompt's tokens")
    }

    model: str | None = hyperparameter(
        None, "another model to embed the prompts' texts with; the cache's reference where none is named"
    )

    @property
    def needs_model(self) -> bool:  # type: ignore[override]
        """The reference, unless another model embeds."""
        return self.model is None

    @property
    def needs_tokenizer(self) -> bool:  # type: ignore[override]
        """To have the prompts' texts for another model."""
        return self.model is not None

    def identity(self) -> dict[str, Any]:
        """Which other model it is, provably."""
        return {} if self.model is None else {"model": self._encoder().identity(self.model)}

    def compute(self, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Mapping[str, Sequence[Any]]:
        """One vector [d] a pair."""
        prompts = [pair.prompt_ids for pair in pairs]
        if self.model is None:
            found = [states.float().mean(0) for states in hidden_states(model, prompts)]
        else:
            found = self._encoder().embed(
                [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in prompts]
            )
        return {"prompt_embedding": found}

    def _encoder(self) -> TextEncoder:
        return text_encoder(str(self.model), "prompt_embedding: model")
