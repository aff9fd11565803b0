"""Going through a cache's shards to add to them, one shard's pairs in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ....cache.pairs import SIDES, Pair, ScoredPair
from ....cache.reader import CacheReader
from ....cache.scores.writer import ScoreWriter
from ...progress import Progress

if TYPE_CHECKING:
    from ...scoring.scorer import ReferenceScorer

Values = dict[str, list[Any]]
Compute = Callable[[Sequence[Pair], Callable[[int], None]], Mapping[str, Sequence[Any]]]
"""A shard's pairs, and what to tell of tokens done -> Parquet column -> a value a pair."""

_READ_PAIRS = 256


def shard_rows(reader: CacheReader) -> dict[int, range]:
    """Shard with rows -> the numbers under which the reader has them."""
    shards = [shard for shard in reader.manifest.shards if shard.rows]
    stops = list(accumulate(shard.rows for shard in shards))
    return {shard.index: range(stop - shard.rows, stop) for shard, stop in zip(shards, stops, strict=True)}


def all_pairs(reader: CacheReader) -> Iterator[Pair]:
    """Every pair of the cache, a few at a time."""
    for start in range(0, len(reader), _READ_PAIRS):
        rows = range(start, min(start + _READ_PAIRS, len(reader)))
        yield from (one.pair for one in reader.read(rows, statistics=("ref_logp",)))


def fill(
    writer: ScoreWriter, reader: CacheReader, waiting: Sequence[int], compute: Compute, what: str, quiet: bool
) -> None:
    """Compute and write the files beside the shards ``waiting``."""
    rows = shard_rows(reader)
    tokens = {shard.index: shard.completion_tokens for shard in reader.manifest.shards}
    with Progress(what, sum(tokens[index] for index in waiting), "tokens", quiet=quiet) as progress:
        for index in waiting:
            pairs = [one.pair for one in reader.read(rows[index], statistics=("ref_logp",))]
            writer.write_shard(index, pairs, compute(pairs, progress.advance))


def score_in_order(
    scorer: "ReferenceScorer", pairs: Sequence[Pair], advance: Callable[[int], None]
) -> list[ScoredPair]:
    """Every pair's statistics, in the order of ``pairs`` whatever order they are scored in."""
    found: dict[int, ScoredPair] = {}
    for batch, scored in scorer.score(pairs):
        found |= {one.pair.row: one for one in scored}
        advance(sum(pair.completion_tokens for pair in batch))
    return [found[pair.row] for pair in pairs]


def side_values(scored: Sequence[ScoredPair], columns: Mapping[str, str]) -> Values:
    """Columns of scored pairs under new names: ``{"positive_logp": "ref_logp"}``, of both sides."""
    return {
        f"{side}_{name}": [np.asarray(getattr(one.side(side), of)) for one in scored]
        for name, of in columns.items()
        for side in SIDES
    }
