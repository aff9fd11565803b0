"""The reference over many pairs: length-sorted batches under a token budget, found by itself."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...cache.pairs import SIDES, Pair, ScoredPair, SideStatistics
from ..errors import ModelError
from .distribution import Sampling
from .forward import check_head, check_sharing, completion_hidden
from .layout import Layout, lay_out, lay_out_shared, separate_width, shared_width
from .placement import loaded_head, place
from .reference import ReferenceScores, reference_scores, tail_uniforms
from .sharing import cannot_share, impossible, longest_shared_row

# Few enough on a CPU for the activations of a layer to stay in its cache.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}

# A batch ends early before a pair of less than this share of the longest one's cost, though not before it has
# one part in so many of the budget.
_FILLED, _LEAST = 0.8, 4


class ReferenceScorer:
    """Scores pairs with the reference model.

    Args:
        model: a causal language model in evaluation mode; moved to the GPU where there is one.
        head: k entries of a position's head, at most; 0 with ``tail`` 0 for no distributions.
        tail: m draws from the rest, at most.
        seed: of the draws.
        batch_tokens: tokens (padding included) of one forward pass; halved whenever memory runs out.
        head_mass, tail_mass: see :class:`~tdpo.core.scoring.distribution.Sampling`.
        prompt_sharing: ``auto`` to score a pair's prompt once where the model can, ``on`` to insist on it,
            ``off`` not to.
        hidden: precision in which to return the last hidden states, a name of torch's; None for none.

    Attributes:
        note: a line to say to the user, where ``auto`` found that prompts cannot be shared.

    Raises:
        ModelError: an architecture whose logits cannot be reproduced, or that cannot share prompts as asked.
    """

    def __init__(
        self,
        model: Any,
        head: int,
        tail: int,
        seed: int,
        batch_tokens: int | None = None,
        *,
        head_mass: float = 1.0,
        tail_mass: float = 0.0,
        prompt_sharing: str = "auto",
        hidden: str | None = None,
    ):
        self.device, self.model = place(model), model
        self.head = loaded_head(model)
        check_head(model, self.head)
        self.hidden_dtype: torch.dtype | None = None if hidden is None else getattr(torch, hidden)
        self.sampling, self.seed = Sampling(head, tail, head_mass, tail_mass), seed
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[self.device.type]
        self.note: str | None = None
        self.sharing = prompt_sharing != "off" and self._can_share(insist=prompt_sharing == "on")
        self._longest_shared = longest_shared_row(model.config)
        self._attention_cost = _attention_cost(model.config)

    @property
    def vocab_size(self) -> int:
        """V of the logits."""
        return self.head.vocab_size

    def score(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[Pair], list[ScoredPair]]]:
        """Batches of ``pairs`` with their statistics, longest first.

        Raises:
            ModelError: one pair alone does not fit into memory.
        """
        shared = [pair for pair in pairs if self._shares(pair)]
        separate = [pair for pair in pairs if not self._shares(pair)]
        with ThreadPoolExecutor(1, thread_name_prefix="tdpo-layout") as ahead:
            for some in (separate, shared):
                yield from self._score(sorted(some, key=self._cost, reverse=True), ahead)

    def _score(
        self, waiting: list[Pair], ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Pair], list[ScoredPair]]]:
        """Score sorted pairs of one layout; the next batch's tokens are laid out ``ahead`` meanwhile."""
        ready: Future[_Batch] | None = None
        while waiting:
            batch = self._prepare(waiting) if ready is None else ready.result()
            following = waiting[len(batch) :]
            ready = ahead.submit(self._prepare, following) if following else None
            try:
                result = self._score_batch(batch)
            except (torch.OutOfMemoryError, MemoryError) as error:
                first = batch.pairs[0]
                if len(batch) == 1:
                    raise ModelError(
                        f"row {first.row} ({separate_width(first)} tokens) does not fit into memory; lower "
                        "--max-length or use a lower --ref-dtype"
                    ) from error
                self.batch_tokens = max(1, int(len(batch) // 2 * self._cost(first)))
                ready = None
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield batch.pairs, result
            waiting = following

    def _prepare(self, waiting: list[Pair]) -> "_Batch":
        pairs = self._next_batch(waiting)
        layout = lay_out_shared(pairs) if self._shares(pairs[0]) else lay_out(pairs)
        return _Batch(pairs, layout, torch.from_numpy(self._uniforms(pairs)))

    def _next_batch(self, waiting: list[Pair]) -> list[Pair]:
        """As many of the longest as the budget allows; fewer where the last would be mostly padding."""
        most = self._cost(waiting[0])
        size = max(1, int(self.batch_tokens // most))
        batch = waiting[:size]
        for count in range(max(1, size // _LEAST), len(batch)):
            if self._cost(batch[count]) < _FILLED * most:
                return batch[:count]
        return batch

    def _can_share(self, *, insist: bool) -> bool:
        config = self.model.config
        reason = cannot_share(config, config._attn_implementation) or check_sharing(self.model)
        if reason is not None and insist:
            raise impossible(config, reason)
        if reason is not None:
            self.note = f"{config.model_type}: prompts are scored once for each completion ({reason})"
        return reason is None

    def _shares(self, pair: Pair) -> bool:
        limit = self._longest_shared
        return self.sharing and (limit is None or shared_width(pair) <= limit)

    def _cost(self, pair: Pair) -> float:
        """Tokens of a pair's rows, those of longer ones for more, as attention takes more memory there."""
        rows, width = (1, shared_width(pair)) if self._shares(pair) else (2, separate_width(pair))
        return rows * width * (1 + width * self._attention_cost)

    @torch.inference_mode()
    def _score_batch(self, batch: "_Batch") -> list[ScoredPair]:
        pairs, layout = batch.pairs, batch.layout
        hidden = completion_hidden(self.model, **layout.model_inputs(self.device))
        device = self.head.weight.device
        hidden, labels = hidden.to(device), layout.labels.to(device)
        scores = reference_scores(self.head, hidden, labels, self.sampling, batch.uniforms.to(device))
        sides = _split(
            scores, layout.lengths.tolist(), distribution=self.sampling.head + self.sampling.tail > 0
        )
        if self.hidden_dtype is not None:
            states = hidden.to(self.hidden_dtype).float().cpu().split(layout.lengths.tolist())
            for side, state in zip(sides, states, strict=True):
                side.ref_hidden = state.numpy()
        count = len(pairs)
        return [ScoredPair(pair, sides[i], sides[count + i]) for i, pair in enumerate(pairs)]

    def _uniforms(self, pairs: list[Pair]) -> np.ndarray:
        return np.concatenate(
            [
                tail_uniforms(self.seed, pair.pair_id, side, len(pair.ids(side)), self.sampling.tail)
                for side in SIDES
                for pair in pairs
            ]
        )


@dataclass(frozen=True)
class _Batch:
    """Pairs that go through the model at once, laid out."""

    pairs: list[Pair]
    layout: Layout
    uniforms: torch.Tensor
    """[N, m] float32, what the draws are made from."""

    def __len__(self) -> int:
        return len(self.pairs)


def _attention_cost(config: Any) -> float:
    """What a token that a token sees takes, in tokens without attention (about 20 d numbers in a layer).

    A mask has one number for it; the eager backend adds a score for each of its heads.
    """
    text = config.get_text_config()
    eager = getattr(config, "_attn_implementation", None) == "eager"
    numbers = 1 + (getattr(text, "num_attention_heads", 1) if eager else 0)
    return numbers / (20 * max(1, getattr(text, "hidden_size", 1024)))


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
    kept = torch.where(scores.dist_logp > -torch.inf, scores.dist_logp.clamp(min=floor), -torch.inf)
    values = pieces(kept, np.float16)
    return [SideStatistics(*columns) for columns in zip(logp, entropy, ids, values, strict=True)]
