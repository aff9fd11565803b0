"""What the page of a cache shows, read from it: figures of a part of its pairs, and a few pairs as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...cache.pairs import ScoredPair
from ...cache.reader import CacheReader
from ...cache.summary import Spread, Summary, pairs_spread_out, summarise
from ..errors import ModelError
from ..models import find_reference
from ..tokenizers import load_tokenizer, tokenizer_identity
from .pieces import decode

# Row groups that statistics are read from, and bins of a histogram, about.
_GROUPS, _BARS = 32, 50
_SHOWN_PAIRS = 6
_SHOWN_CHARACTERS = 4000


@dataclass(frozen=True)
class Dispersion:
    """How pairs are spread by what their prompts leave open: ``-log(H / log V)``, MallowsPO's coefficient."""

    spread: Spread
    quartiles: tuple[float, float, float]
    pairs: int
    """How many were read."""


@dataclass(frozen=True)
class ShownPair:
    """A pair of the cache, to be read."""

    pair_id: str
    row: int
    lengths: dict[str, int]
    """Part -> tokens."""
    parts: dict[str, str]
    """``prompt``, ``chosen`` and ``rejected``: text, or token ids."""


@dataclass(frozen=True)
class CacheFigures:
    """What is drawn of a cache with pairs."""

    summary: Summary
    dispersion: Dispersion | None
    """None where the cache holds no entropies."""
    pairs: list[ShownPair]
    notes: list[str]
    """What could not be shown, and why."""


def cache_figures(reader: CacheReader, *, text: bool = True) -> CacheFigures | None:
    """Read what there is to draw; None of a cache without pairs. The cost does not grow with the cache.

    Args:
        reader: the cache.
        text: whether pairs may be shown as text.

    Raises:
        CacheError: a shard is missing or damaged.
    """
    summary = summarise(reader, statistics=True, bars=_BARS, groups=_GROUPS)
    if summary is None:
        return None
    pairs, notes = _pairs(reader) if text else ([], [])
    return CacheFigures(summary, _dispersion(reader), pairs, notes)


def _dispersion(reader: CacheReader) -> Dispersion | None:
    if "ref_entropy" not in reader.statistics:
        return None
    import torch

    from ..dispersion import mean_entropies, negative_log_dispersion

    means = [mean_entropies(pair) for pair in pairs_spread_out(reader, _GROUPS, {"ref_entropy"})]
    values = negative_log_dispersion(torch.tensor(means, dtype=torch.float64), reader.vocab_size).numpy()
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Dispersion(Spread.of(values, _BARS), (low, middle, high), len(values))


def _pairs(reader: CacheReader) -> tuple[list[ShownPair], list[str]]:
    """A few pairs, evenly over the cache, by the reference's own tokenizer."""
    count = min(_SHOWN_PAIRS, len(reader))
    rows = [at * len(reader) // count for at in range(count)]
    pairs = reader.read(rows, statistics={"ref_logp"})
    try:
        tokenizer = load_tokenizer(
            find_reference(reader.manifest, reader.location, option="its reference"), option="its reference"
        )
    except ModelError as error:
        return [_shown(one, None) for one in pairs], [f"Pairs are shown as token ids: {error}."]
    recorded = reader.identity.get("tokenizer", {}).get("vocabulary_sha256")
    if tokenizer_identity(tokenizer)["vocabulary_sha256"] != recorded:
        return [_shown(one, None) for one in pairs], [
            "Pairs are shown as token ids: the tokenizer that lies beside the reference now has another "
            "vocabulary than the one of the cache."
        ]
    return [_shown(one, tokenizer) for one in pairs], []


def _shown(scored: ScoredPair, tokenizer: Any) -> ShownPair:
    pair = scored.pair
    ids = {"prompt": pair.prompt_ids, "chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
    return ShownPair(
        pair.pair_id,
        pair.row,
        {part: len(each) for part, each in ids.items()},
        {part: _readable(tokenizer, each.tolist()) for part, each in ids.items()},
    )


def _readable(tokenizer: Any, ids: Sequence[int]) -> str:
    text = " ".join(map(str, ids)) if tokenizer is None else decode(tokenizer, ids)
    left = len(text) - _SHOWN_CHARACTERS
    return text if left <= 0 else f"{text[:_SHOWN_CHARACTERS]} … ({left:,} more characters)"
