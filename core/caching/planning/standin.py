"""How many bytes a cache takes, measured on a shard that a stand-in of the reference scores.

The pairs are the first of the data, and scoring, sampling and Parquet writing are the real ones; only the
model is not: a tiny one with the reference's vocabulary and random weights, about as sure of its predictions
as a language model on text of its kind (two nats of entropy). How sure the real one is decides how many
entries of the adaptive sample are kept, so that what is written when every entry is kept is measured too.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.parquet as pq
import torch

from ....cache.encode import write_pairs
from ....cache.pairs import SIDES, Pair, ScoredPair
from ....cache.schema import ROW_GROUP_ROWS, CachedStatistics
from ...config.build import BuildConfig
from ..reference import make_scorer

_WIDTH = 16
_PAIRS, _TOKENS, _VALUES = 64, 1500, 2_000_000


@dataclass(frozen=True)
class ShardBytes:
    """What a shard takes: so much a file, a row group, a pair, and a token of the prompt or a completion."""

    file: float
    row_group: float
    pair: float
    prompt_token: float
    completion_token: float
    in_memory: float
    """Of a completion token while its shard is scored and written."""
    batch_tokens: int
    """Tokens scored at a time."""
    device: str
    """Where scoring runs."""

    def of(self, shards: int, pairs: int, prompt_tokens: int, completion_tokens: int) -> int:
        """Bytes of a cache's shards."""
        groups = max(shards, math.ceil(pairs / ROW_GROUP_ROWS)) if pairs else 0
        return round(
            shards * self.file
            + groups * self.row_group
            + pairs * self.pair
            + prompt_tokens * self.prompt_token
            + completion_tokens * self.completion_token
        )


def measure(config: BuildConfig, statistics: dict[str, Any], pairs: Sequence[Pair]) -> ShardBytes:
    """Score a few of the pairs with the stand-in and weigh what is written.

    Args:
        config: the build's options.
        statistics: ``identity["statistics"]`` of the cache.
        pairs: some of its pairs, at least one.
    """
    cached = CachedStatistics.of({"statistics": statistics})
    hidden_size = cached.hidden_size
    small = replace(cached, hidden_size=min(hidden_size, _WIDTH))
    few = _few(pairs, cached.entries + small.hidden_size)
    scorer = make_scorer(
        replace(config, prompt_sharing="off"), _stand_in(cached.vocab_size, few), asdict(small)
    )
    scored = [one for _, result in scorer.score(few) for one in result]
    scored.sort(key=lambda one: one.pair.row)
    share, around = _weigh(scored, small, len(scored))
    _, around_two = _weigh([*scored, *scored], small, len(scored))
    grown = hidden_size / small.hidden_size if hidden_size else 1.0
    prompt, pair = share.pop("prompt_ids"), share.pop("pair_id") + share.pop("row")
    tokens = sum(one.pair.completion_tokens for one in scored)
    completion = sum(size * (grown if "ref_hidden" in name else 1) for name, size in share.items())
    return ShardBytes(
        file=2 * around - around_two,
        row_group=around_two - around,
        pair=pair / len(scored),
        prompt_token=prompt / sum(len(one.pair.prompt_ids) for one in scored),
        completion_token=completion / tokens,
        in_memory=sum(_memory(one, grown) for one in scored) / tokens,
        batch_tokens=scorer.batch_tokens,
        device=scorer.device.type,
    )


def unbounded(statistics: dict[str, Any]) -> dict[str, Any]:
    """The statistics with every entry kept, whatever the reference says."""
    return {**statistics, "head_mass": 1.0, "tail_mass": 0.0}


def _few(pairs: Sequence[Pair], values_a_token: int) -> list[Pair]:
    """The first pairs, as many as a second or two of scoring allows."""
    budget = min(_TOKENS, max(1, _VALUES // max(1, values_a_token)))
    few: list[Pair] = []
    for pair in pairs[:_PAIRS]:
        if few and budget < pair.completion_tokens:
            break
        few.append(pair)
        budget -= pair.completion_tokens
    return few


def _stand_in(vocab_size: int, pairs: Sequence[Pair]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    longest = max(len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=longest,
        # Large enough that what is said depends on all of the text, as it must for nothing to repeat.
        initializer_range=2 / math.sqrt(_WIDTH),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight)
        # Logits of this spread leave about two nats of entropy, whatever the vocabulary's size.
        spread = 1.35 * math.sqrt(2 * math.log(vocab_size))
        torch.nn.init.normal_(model.lm_head.weight, std=spread / math.sqrt(_WIDTH))
    return model.eval()


def _weigh(
    scored: Sequence[ScoredPair], cached: CachedStatistics, row_group_rows: int
) -> tuple[dict[str, int], int]:
    """Bytes of each column's values, and of all around them."""
    file = io.BytesIO()
    write_pairs(file, scored, cached, row_group_rows=row_group_rows)
    columns: dict[str, int] = {}
    footer = pq.ParquetFile(io.BytesIO(file.getvalue())).metadata
    for group in range(footer.num_row_groups):
        for at in range(footer.num_columns):
            column = footer.row_group(group).column(at)
            name = column.path_in_schema.split(".", 1)[0]
            columns[name] = columns.get(name, 0) + column.total_compressed_size
    return columns, len(file.getvalue()) - sum(columns.values())


def _memory(one: ScoredPair, grown: float) -> float:
    size = 0.0
    for side in SIDES:
        values = one.side(side)
        for name in values.__slots__:
            if (array := getattr(values, name)) is not None:
                size += array.nbytes * (grown if name == "ref_hidden" else 1)
    return size
