"""The reference over many pairs: length-sorted batches under a token budget, found by itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ...cache.pairs import SIDES, Pair, ScoredPair, SideStatistics
from ..errors import ModelError
from .forward import check_head, completion_hidden
from .head import Head
from .layout import lay_out
from .reference import ReferenceScores, reference_scores, tail_uniforms

_BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}


class ReferenceScorer:
    """Scores pairs with the reference model.

    Args:
        model: a causal language model in evaluation mode; moved to the GPU where there is one.
        head: k entries of each position's head; 0 with ``tail`` 0 for no distributions.
        tail: m draws from the rest.
        seed: of the draws.
        batch_tokens: tokens (padding included) of one forward pass; halved whenever memory runs out.

    Raises:
        ModelError: an architecture whose logits cannot be reproduced.
    """

    def __init__(self, model: Any, head: int, tail: int, seed: int, batch_tokens: int | None = None):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        check_head(model)
        self.head = Head.of(model)
        self.k, self.m, self.seed = head, tail, seed
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[self.device.type]

    @property
    def vocab_size(self) -> int:
        """V of the logits."""
        return self.head.vocab_size

    def score(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[Pair], list[ScoredPair]]]:
        """Batches of ``pairs`` with their statistics, longest first.

        Raises:
            ModelError: one pair alone does not fit into memory.
        """
        waiting = sorted(pairs, key=_width, reverse=True)
        while waiting:
            size = max(1, self.batch_tokens // (2 * _width(waiting[0])))
            batch = waiting[:size]
            try:
                result = self._score_batch(batch)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if size == 1:
                    raise ModelError(
                        f"row {batch[0].row} ({_width(batch[0])} tokens) does not fit into memory; "
                        "lower --max-length or use a lower --ref-dtype"
                    ) from error
                self.batch_tokens = max(1, len(batch) // 2) * 2 * _width(batch[0])
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield batch, result
            waiting = waiting[size:]

    @torch.inference_mode()
    def _score_batch(self, pairs: list[Pair]) -> list[ScoredPair]:
        layout = lay_out(pairs)
        hidden = completion_hidden(
            self.model,
            layout.input_ids.to(self.device),
            layout.attention_mask.to(self.device),
            layout.positions.to(self.device),
        )
        uniforms = torch.from_numpy(self._uniforms(pairs)).to(self.device)
        scores = reference_scores(self.head, hidden, layout.labels.to(self.device), self.k, uniforms)
        sides = _split(scores, layout.lengths.tolist(), distribution=self.k + self.m > 0)
        count = len(pairs)
        return [ScoredPair(pair, sides[i], sides[count + i]) for i, pair in enumerate(pairs)]

    def _uniforms(self, pairs: list[Pair]) -> np.ndarray:
        return np.concatenate(
            [
                tail_uniforms(self.seed, pair.pair_id, side, len(getattr(pair, f"{side}_ids")), self.m)
                for side in SIDES
                for pair in pairs
            ]
        )


def _width(pair: Pair) -> int:
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _split(scores: ReferenceScores, lengths: list[int], *, distribution: bool) -> list[SideStatistics]:
    """Flat statistics as one record a completion, in the cache's dtypes."""
    stops = np.cumsum(lengths)[:-1]

    def pieces(flat: torch.Tensor, dtype: Any) -> list[np.ndarray]:
        return np.split(flat.cpu().numpy().astype(dtype), stops)

    logp, entropy = pieces(scores.logp, np.float32), pieces(scores.entropy, np.float16)
    if not distribution:
        return [SideStatistics(a, b, None, None) for a, b in zip(logp, entropy, strict=True)]
    # Less than float16 can say is probability zero for every purpose, and stays finite.
    floor = torch.finfo(torch.float16).min
    ids = pieces(scores.dist_ids, np.uint32)
    values = pieces(scores.dist_logp.clamp(min=floor), np.float16)
    return [SideStatistics(*columns) for columns in zip(logp, entropy, ids, values, strict=True)]
