"""Scoring a cache's shards: each is written while the next is scored."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ...cache.pairs import Pair, ScoredPair
from ..data.spool import PairSpool

if TYPE_CHECKING:
    from ..scoring.scorer import ReferenceScorer

Window = tuple[int, list[Pair], dict[str, list[int]]]
"""What is to be scored of a shard: its index, its pairs, and its skipped rows by reason."""


class Waiting:
    """The shards still to be scored, each taken once by whoever asks first. Threads may share one."""

    def __init__(self, spool: PairSpool, shards: Sequence[int]):
        self._spool = spool
        self._left = deque(shards)
        self._guard = threading.Lock()
        self.tokens = sum(spool.scored_tokens(index) for index in shards)
        """Tokens that scoring them all passes through the reference."""

    def __len__(self) -> int:
        return len(self._left)

    def take(self) -> Window | None:
        """The next shard; None where none is left."""
        with self._guard:
            if not self._left:
                return None
            index = self._left.popleft()
            return index, *self._spool.window(index)

    def __iter__(self) -> Iterator[Window]:
        return iter(self.take, None)


def score_shards(
    scorer: "ReferenceScorer",
    waiting: Iterable[Window],
    write: Callable[[int, list[ScoredPair], dict[str, list[int]]], Any],
    advance: Callable[[int], None],
) -> None:
    """Score shards one at a time, whole, so that what is in one does not depend on who scored the others.

    Args:
        scorer: the reference.
        waiting: the shards.
        write: writes one; called in a thread of its own, while the next is scored.
        advance: told after each batch how many tokens it had.
    """
    pending: Future[Any] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="tdpo-writer") as background:
        try:
            for index, pairs, skipped in waiting:
                scored: list[ScoredPair] = []
                for batch, result in scorer.score(pairs):
                    scored += result
                    advance(sum(_tokens(pair) for pair in batch))
                if pending is not None:
                    pending.result()
                pending = background.submit(write, index, scored, skipped)
        finally:
            # Whatever stopped the scoring, a shard that is being written is finished and kept.
            if pending is not None:
                pending.result()


def _tokens(pair: Pair) -> int:
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
