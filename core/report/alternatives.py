"""What else could have come: the likeliest tokens of the reference, and how likely they are to the policy."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluating.scorer import PairScorer
from ..scoring.chunking import steps
from ..scoring.exact import FromHidden, FromLogProbs, WholeReference
from ..scoring.layout import completion_mask, to_padded
from ..training.batches import MicroBatch, tokens_of

# Positions at which a whole distribution is rebuilt at a time.
_ROWS = 128


@dataclass(frozen=True)
class Alternatives:
    """Of the T tokens of one completion: the n likeliest tokens of the reference, in falling order."""

    ids: Tensor
    """[T, n] int64."""
    ref_logp: Tensor
    """[T, n] nats; -inf where a position has fewer."""
    logp: Tensor
    """[T, n] nats: of the policy, at the same tokens; -inf as in ``ref_logp``."""

    @property
    def ref_rest(self) -> Tensor:
        """[T]: the probability that the reference gives to all other tokens together."""
        return _rest(self.ref_logp)

    @property
    def rest(self) -> Tensor:
        """[T]: the probability that the policy gives to them."""
        return _rest(self.logp)


def likeliest_tokens(
    scorer: PairScorer, rows: Collection[int], count: int
) -> Iterator[tuple[str, Alternatives, Alternatives]]:
    """Pair id, and the alternatives of the chosen and of the rejected side, of the pairs at these rows.

    They are the head of the cached sample, or the likeliest of the whole distribution where the cache holds
    that; with neither, there are none (n = 0).

    Args:
        scorer: of the policy and the cache.
        rows: row numbers; pairs may come in another order.
        count: n at most.
    """
    for batch, pairs in scorer.batches(rows):
        ids, ref_logp = _asked(scorer, batch, count)
        with torch.no_grad():
            logp = scorer.model(**tokens_of(batch), score_ids=ids).logp
        there = ref_logp > -torch.inf
        values = (ids, ref_logp, torch.where(there, logp.to(ref_logp.dtype), -torch.inf))
        mask = completion_mask(batch["lengths"])
        padded = [to_padded(one, mask) for one in values]
        for at, pair in enumerate(pairs):
            chosen, rejected = (
                Alternatives(*(one[row][mask[row]].cpu() for one in padded)) for row in (at, at + len(pairs))
            )
            yield pair.pair_id, chosen, rejected


def _asked(scorer: PairScorer, batch: MicroBatch, count: int) -> tuple[Tensor, Tensor]:
    """Ids and the reference's log-probs [N, n], n <= ``count``."""
    cached = scorer.reader.cached
    if cached.whole:
        return _of_whole(_reference(scorer, batch), len(batch["score_ids"]), cached.vocab_size, count)
    n = min(count, cached.head) if "dist_logp" in batch else 0
    empty = batch["ref_logp"].new_empty(len(batch["score_ids"]), 0)
    ref_logp = batch["dist_logp"][:, :n].float() if n else empty
    return batch["score_ids"][:, 1 : 1 + n], ref_logp


def _reference(scorer: PairScorer, batch: MicroBatch) -> WholeReference:
    exact = scorer.exact
    if exact.head is not None and exact.hidden is not None:
        return FromHidden(exact.head, batch["ref_hidden"].to(exact.hidden))
    return FromLogProbs.of(batch["score_ids"][:, 1:], batch["dist_logp"])


@torch.no_grad()
def _of_whole(
    reference: WholeReference, positions: int, vocab_size: int, count: int
) -> tuple[Tensor, Tensor]:
    tops = [
        reference.logits(rows, slice(0, vocab_size)).log_softmax(-1).topk(min(count, vocab_size), -1)
        for rows in steps(positions, _ROWS)
    ]
    return torch.cat([one.indices for one in tops]), torch.cat([one.values for one in tops])


def _rest(logp: Tensor) -> Tensor:
    return (1 - logp.exp().sum(-1)).clamp(min=0)
