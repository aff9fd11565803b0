"""Scoring a cache's shards: each is written while the next is scored."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...cache.manifest import Shard
from ...cache.pairs import Pair, ScoredPair
from ...cache.writer import CacheWriter
from ..data.spool import PairSpool
from ..progress import Progress

if TYPE_CHECKING:
    from ..scoring.scorer import ReferenceScorer


def score_shards(
    scorer: "ReferenceScorer", spool: PairSpool, writer: CacheWriter, waiting: Sequence[int], quiet: bool
) -> None:
    """Score the shards ``waiting`` and have them written."""
    pending: Future[Shard] | None = None
    with (
        ThreadPoolExecutor(1, thread_name_prefix="tdpo-writer") as background,
        Progress("scoring", sum(spool.scored_tokens(i) for i in waiting), "tokens", quiet=quiet) as progress,
    ):
        try:
            for index in waiting:
                pairs, skipped = spool.window(index)
                scored: list[ScoredPair] = []
                for batch, result in scorer.score(pairs):
                    scored += result
                    progress.advance(sum(_tokens(pair) for pair in batch))
                if pending is not None:
                    pending.result()
                pending = background.submit(writer.write_shard, index, scored, skipped)
        finally:
            # Whatever stopped the scoring, a shard that is being written is finished and kept.
            if pending is not None:
                pending.result()


def _tokens(pair: Pair) -> int:
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
