"""The shards' columns, their types, and how Parquet stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from .errors import CacheError
from .pairs import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "tdpo-cache"
FORMAT_VERSION = 1
ROW_GROUP_ROWS = 64

Statistic = Literal["ref_logp", "ref_entropy", "dist", "ref_hidden"]
STATISTICS: tuple[Statistic, ...] = ("ref_logp", "ref_entropy", "dist", "ref_hidden")

HIDDEN_DTYPES = ("bfloat16", "float32")
HEAD_NAME = "reference_head.safetensors"
"""The reference's output head, once a cache, wherever its hidden states are."""


@dataclass(frozen=True, slots=True)
class CachedStatistics:
    """Which statistics of the reference a cache holds: `identity["statistics"]` of its manifest.

    Attributes:
        entropy: whether the reference's full entropy is there.
        head: k, how many of the most probable tokens are there for a position, at most.
        tail: m, how many draws from the rest of the distribution are there for a position, at most.
        seed: seed of those draws.
        vocab_size: V, the width of the reference's logits; every cached token id is below it.
        hidden: precision of the reference's last hidden states, one of `HIDDEN_DTYPES`; None without them.
        hidden_size: d, their width; 0 without them.
        head_mass: a head ends early, with the first entry by which it holds this share of the probability;
            at 1 every head has k entries.
        tail_mass: a position has m draws where at least this share is left outside its head, and in
            proportion fewer, but one, where less is; at 0 every position has m.

    """

    entropy: bool
    head: int
    tail: int
    seed: int
    vocab_size: int
    hidden: str | None = None
    hidden_size: int = 0
    head_mass: float = 1.0
    tail_mass: float = 0.0

    @classmethod
    def of(cls, identity: Mapping[str, Any], where: str = "the identity") -> CachedStatistics:
        """Read them out of a manifest's identity.

        Raises:
            CacheError: a value is missing, or is not what it should be.

        """
        found = identity.get("statistics")
        if not isinstance(found, dict):
            raise CacheError(f'{where} has no "statistics": the cache is damaged, build it again')
        # A cache without hidden states, or with as many entries at every token, need not say so.
        optional = {"hidden": None, "hidden_size": 0, "head_mass": 1.0, "tail_mass": 0.0}
        values = optional | {n: v for n, v in found.items() if n in cls.__slots__}
        for name in cls.__slots__:
            value = values.setdefault(name, None)
            described = _unlike(name, value)
            if name == "hidden_size" and not described and (values["hidden"] is None) != (value == 0):
                described = "above 0 where there are hidden states, and 0 where there are none"
            if described:
                raise CacheError(
                    f"{where} has statistics.{name} = {value!r}, which should be {described}: "
                    "the cache is damaged, build it again"
                )
        return cls(**values)

    def width(self, column: str) -> int | None:
        """Values in memory of a side's column (named without the side) at a token; None for a number."""
        return {"dist_ids": self.entries, "dist_logp": self.entries, "ref_hidden": self.hidden_size}.get(
            column
        )

    @property
    def files(self) -> frozenset[str]:
        """Names of the files beside the shards without which these statistics cannot be used."""
        return frozenset() if self.hidden is None else frozenset({HEAD_NAME})

    @property
    def full(self) -> bool:
        """Whether the cached entries are the whole distribution."""
        return self.head == self.vocab_size

    @property
    def whole(self) -> bool:
        """Whether the reference's whole distribution can be had: from its hidden states or the entries."""
        return self.full or self.hidden is not None

    @property
    def entries(self) -> int:
        """Cached entries of the distribution at a position, at most: n = head + tail."""
        return self.head + self.tail

    @property
    def names(self) -> frozenset[Statistic]:
        """Names of the statistics that are there."""
        present: dict[Statistic, bool] = {
            "ref_logp": True,
            "ref_entropy": self.entropy,
            "dist": self.entries > 0,
            "ref_hidden": self.hidden is not None,
        }
        return frozenset(name for name in STATISTICS if present[name])


def _unlike(name: str, value: Any) -> str | None:
    """Say what a value of `CachedStatistics` should be, where it is not."""
    if name == "entropy":
        return None if type(value) is bool else "true or false"
    if name == "hidden":
        return None if value in (None, *HIDDEN_DTYPES) else f"null or one of {', '.join(HIDDEN_DTYPES)}"
    if name in ("head_mass", "tail_mass"):
        return None if type(value) in (int, float) and 0 <= value <= 1 else "between 0 and 1"
    whole = type(value) is int and (value >= 0 or name == "seed")
    return None if whole else "a whole number"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one side, named without `chosen_` or `rejected_`.

    Attributes:
        suffix: its name.
        stored: type of its elements in Parquet.
        dtype: type of its values in memory. The stored type holds each of them exactly.
        doc: what it is.

    """

    suffix: str
    stored: pa.DataType
    dtype: type[np.generic]
    doc: str


# float16 values lie in float32 columns: their empty low bytes cost nothing once split and compressed, and
# every reader takes them, which is not so of split float16.
SIDE_COLUMNS: dict[Statistic, tuple[Column, ...]] = {
    "ref_logp": (
        Column(
            "ref_logp",
            pa.float32(),
            np.float32,
            "[T] the reference's log-probability of each completion token, in nats",
        ),
    ),
    "ref_entropy": (
        Column(
            "ref_entropy",
            pa.float32(),
            np.float16,
            "[T] entropy of the reference's full distribution at each token, in nats, rounded to float16",
        ),
    ),
    "dist": (
        Column(
            "dist_head",
            pa.uint32(),
            np.uint32,
            "[T] how many of the entries at each token are its likeliest tokens",
        ),
        Column(
            "dist_tail",
            pa.uint32(),
            np.uint32,
            "[T] how many of the entries at each token are draws from the rest",
        ),
        Column(
            "dist_ids",
            pa.uint32(),
            np.uint32,
            "token ids of the cached entries of the distributions, token after token, each one's head first",
        ),
        Column(
            "dist_logp",
            pa.float32(),
            np.float16,
            "the reference's log-probabilities of those entries, in nats, rounded to float16",
        ),
    ),
    "ref_hidden": (
        Column(
            "ref_hidden",
            pa.float32(),
            np.float32,
            "[T * d] the reference's last hidden state that predicts each token, in the precision of "
            "tdpo.hidden",
        ),
    ),
}
COLUMNS = {column.suffix: column for columns in SIDE_COLUMNS.values() for column in columns}

ENTRY_COLUMNS = ("dist_head", "dist_tail", "dist_ids", "dist_logp")
"""Columns of a side that say together which entries each token has; see `tdpo.cache.entries`."""


def side_columns(statistics: frozenset[Statistic]) -> list[str]:
    """Names, without `chosen_` or `rejected_`, of the columns that hold these statistics."""
    return [column.suffix for name in STATISTICS if name in statistics for column in SIDE_COLUMNS[name]]


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"doc": doc})


def _list_field(name: str, element: pa.DataType, doc: str) -> pa.Field:
    return _field(name, pa.list_(pa.field("element", element, nullable=False)), doc)


def shard_schema(statistics: CachedStatistics) -> pa.Schema:
    """Return the Arrow schema of a shard that holds these statistics.

    Columns of statistics that the cache does not hold are absent. Nothing is nullable.
    """
    fields = [
        _field("pair_id", pa.string(), "content hash of the three token lists, 32 hexadecimal digits"),
        _field("row", pa.int64(), "index of the pair in the source data"),
        _list_field("prompt_ids", pa.int32(), "[P] token ids of the prompt"),
        _list_field("chosen_ids", pa.int32(), "[T] token ids of the chosen completion"),
        _list_field("rejected_ids", pa.int32(), "[T] token ids of the rejected completion"),
    ]
    for side in SIDES:
        for column in map(COLUMNS.__getitem__, side_columns(statistics.names)):
            fields += [_list_field(f"{side}_{column.suffix}", column.stored, column.doc)]
    described = {
        "tdpo.format": FORMAT,
        "tdpo.format_version": str(FORMAT_VERSION),
        "tdpo.head": str(statistics.head),
        "tdpo.tail": str(statistics.tail),
        "tdpo.vocab_size": str(statistics.vocab_size),
    }
    if statistics.hidden is not None:
        described |= {"tdpo.hidden": statistics.hidden, "tdpo.hidden_size": str(statistics.hidden_size)}
    return pa.schema(fields, metadata=described)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of `pyarrow.parquet.ParquetWriter` that store a shard small and fast to read.

    Token ids and log-probabilities hardly repeat, so dictionaries only cost. BYTE_STREAM_SPLIT puts the
    bytes of equal significance side by side, where zstd finds what little there is to find. The measurements
    are in docs/cache-format.md.

    """
    split = [f"{field.name}.list.element" for field in schema if pa.types.is_list(field.type)]
    return {
        "compression": "zstd",
        "compression_level": 9,
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": ["pair_id", "row"],
        "write_page_checksum": True,
    }
