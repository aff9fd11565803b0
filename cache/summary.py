"""Figures of a cache that its manifest does not hold: token lengths, bytes by column, entropies.

They come from at most `SHARDS` shards, spread over the cache, and `GROUPS` row groups of each, so that
looking at a large or remote cache stays cheap; of the shards only the columns that are asked for are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .errors import CacheError
from .lengths import list_lengths
from .pairs import SIDES
from .storage.files import Folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from .pairs import ScoredPair
    from .reader import CacheReader

SHARDS, GROUPS, BARS = 32, 8, 10


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are spread.

    Attributes:
        mean, minimum, median, p95, maximum: of the values.
        edges: ends of the histogram's bins, `len(counts) + 1` of them; a bin holds its left end.
        counts: values in each bin.

    """

    mean: float
    minimum: float
    median: float
    p95: float
    maximum: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, bars: int = BARS) -> Spread:
        """Sum up [N] values, N >= 1, with about `bars` bins."""
        whole = np.issubdtype(values.dtype, np.integer)
        values = values.astype(np.float64)
        step = _round_step((values.max() - values.min()) / bars)
        if whole:
            step = max(step, 1)
        start = np.floor(values.min() / step)
        bins = np.floor(values / step).astype(np.int64) - int(start)
        counts = np.bincount(bins)
        edges = [round(float((start + at) * step), 10) for at in range(len(counts) + 1)]
        low, median, p95, high = np.quantile(values, [0, 0.5, 0.95, 1])
        return cls(
            mean=float(values.mean()),
            minimum=float(low),
            median=float(median),
            p95=float(p95),
            maximum=float(high),
            edges=tuple(edges),
            counts=tuple(counts.tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Summary:
    """What was found in the shards that were looked at.

    Attributes:
        shards: how many shards were looked at, and how many with pairs there are.
        pairs: how many pairs were looked at.
        tokens: spread of the tokens of `prompt`, `chosen` and `rejected`.
        column_bytes: column -> bytes in the files for each completion token; `footer` is all but values.
        entropy: spread of the reference's entropy at completion tokens, in nats; None where not asked for
            or not cached.
        tail_mass: spread of the probability outside the cached head; None likewise.
        completion_entropy: spread of the mean entropy of each completion, in nats; None likewise.
        entries: spread of the cached entries of the distributions at completion tokens; None likewise.

    """

    shards: tuple[int, int]
    pairs: int
    tokens: dict[str, Spread]
    column_bytes: dict[str, float]
    entropy: Spread | None = None
    tail_mass: Spread | None = None
    completion_entropy: Spread | None = None
    entries: Spread | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "shards_read": self.shards[0],
            "shards_with_pairs": self.shards[1],
            "pairs_read": self.pairs,
            "tokens": {name: spread.to_dict() for name, spread in self.tokens.items()},
            "bytes_per_completion_token": self.column_bytes,
            **{
                name: spread.to_dict()
                for name in ("entropy", "tail_mass", "completion_entropy", "entries")
                if (spread := getattr(self, name)) is not None
            },
        }


def summarise(
    reader: CacheReader, *, statistics: bool = False, bars: int = BARS, groups: int = GROUPS
) -> Summary | None:
    """Look into the shards of a cache, finished or not; None where no shard holds a pair.

    Args:
        reader: the cache, opened.
        statistics: also read entropies and the entries' log-probabilities.
        bars: bins of each histogram, about.
        groups: row groups of the cache that `statistics` come from, at most.

    Raises:
        CacheError: a shard is missing or damaged.

    """
    folder = Folder.at(reader.location)
    held = [shard for shard in reader.manifest.shards if shard.file is not None]
    looked_at = _spread_out(held, SHARDS)
    if not looked_at:
        return None
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in ("prompt", *SIDES)}
    column_bytes: dict[str, int] = {}
    for shard in looked_at:
        name = str(shard.file)
        try:
            file = folder.parquet(name)
            try:
                _add_column_bytes(file.metadata, shard.bytes, column_bytes)
                for group in _spread_out(range(file.metadata.num_row_groups), GROUPS):
                    columns = [f"{part}_ids" for part in lengths]
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    for part, found in lengths.items():
                        found.append(list_lengths(table, f"{part}_ids"))
            finally:
                file.close(force=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            what = (str(error) or type(error).__name__).splitlines()[0]
            raise CacheError(
                f"{folder.locate(name)} cannot be read ({what}): tdpo cache verify says what is damaged"
            ) from error
    tokens = sum(shard.completion_tokens for shard in looked_at)
    values = _statistics(reader, groups) if statistics else {}
    return Summary(
        (len(looked_at), len(held)),
        sum(map(len, lengths["prompt"])),
        {part: Spread.of(np.concatenate(each), bars) for part, each in lengths.items()},
        {name: size / tokens for name, size in column_bytes.items()},
        **{name: Spread.of(np.concatenate(each), bars) for name, each in values.items() if each},
    )


def _statistics(reader: CacheReader, groups: int) -> dict[str, list[np.ndarray]]:
    """Statistics of the completion tokens, and of the completions, of a few row groups."""
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("entropy", "tail_mass", "completion_entropy", "entries")
    }
    for pair in pairs_spread_out(reader, groups, reader.statistics & {"ref_entropy", "dist"}):
        for side in SIDES:
            values = pair.side(side)
            if values.ref_entropy is not None:
                found["entropy"].append(values.ref_entropy.astype(np.float32))
                found["completion_entropy"].append(values.ref_entropy.mean(dtype=np.float64, keepdims=True))
            if values.dist_logp is not None:
                found["entries"].append(np.isfinite(values.dist_logp).sum(-1))
            if values.dist_logp is not None and reader.head:
                head = np.exp(values.dist_logp[:, : reader.head].astype(np.float32))
                found["tail_mass"].append(np.clip(1 - head.sum(-1), 0, 1))
    return found


def pairs_spread_out(reader: CacheReader, groups: int, statistics: Collection[str]) -> Iterator[ScoredPair]:
    """Yield the pairs of at most `groups` row groups, evenly over the cache, with these statistics."""
    sizes = reader.group_sizes
    starts = np.cumsum([0, *sizes])
    for group in _spread_out(range(len(sizes)), groups):
        yield from reader.read(range(starts[group], starts[group + 1]), statistics=statistics)


def _spread_out(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly over all."""
    count = min(most, len(items))
    return [items[at * len(items) // count] for at in range(count)]


def _add_column_bytes(footer: Any, file_bytes: int, found: dict[str, int]) -> None:
    stored = 0
    for group in range(footer.num_row_groups):
        for at in range(footer.num_columns):
            column = footer.row_group(group).column(at)
            name = column.path_in_schema.split(".", 1)[0]
            found[name] = found.get(name, 0) + column.total_compressed_size
            stored += column.total_compressed_size
    found["footer"] = found.get("footer", 0) + file_bytes - stored


def _round_step(width: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (or 0.1, ...) that is not below `width`."""
    if width <= 0:
        return 1
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9)))
