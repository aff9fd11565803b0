"""The shards' columns, their types, and how Parquet stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from .errors import CacheError
from .pairs import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "tdpo-cache"
FORMAT_VERSION = 1
ROW_GROUP_ROWS = 64

Statistic = Literal["ref_logp", "ref_entropy", "dist"]
STATISTICS: tuple[Statistic, ...] = ("ref_logp", "ref_entropy", "dist")


@dataclass(frozen=True, slots=True)
class CachedStatistics:
    """Which statistics of the reference a cache holds: `identity["statistics"]` of its manifest.

    Attributes:
        entropy: whether the reference's full entropy is there.
        head: k, how many of the most probable tokens are there for every position.
        tail: m, how many draws from the rest of the distribution are there for every position.
        seed: seed of those draws.
        vocab_size: V, the width of the reference's logits; every cached token id is below it.

    """

    entropy: bool
    head: int
    tail: int
    seed: int
    vocab_size: int

    @classmethod
    def of(cls, identity: Mapping[str, Any], where: str = "the identity") -> CachedStatistics:
        """Read them out of a manifest's identity.

        Raises:
            CacheError: a value is missing, or is not what it should be.

        """
        found = identity.get("statistics")
        if not isinstance(found, dict):
            raise CacheError(f'{where} has no "statistics": the cache is damaged, build it again')
        values: dict[str, Any] = {}
        for name, kind in cls.__annotations__.items():
            value = found.get(name)
            wanted, described = (bool, "true or false") if kind == "bool" else (int, "a whole number")
            if type(value) is not wanted or (name != "seed" and value < 0):
                raise CacheError(
                    f"{where} has statistics.{name} = {value!r}, which should be {described}: "
                    "the cache is damaged, build it again"
                )
            values[name] = value
        return cls(**values)

    @property
    def entries(self) -> int:
        """Cached entries of the distribution at each position: n = head + tail."""
        return self.head + self.tail

    @property
    def names(self) -> frozenset[Statistic]:
        """Names of the statistics that are there."""
        present: dict[Statistic, bool] = {
            "ref_logp": True,
            "ref_entropy": self.entropy,
            "dist": self.entries > 0,
        }
        return frozenset(name for name in STATISTICS if present[name])


# Statistic -> the columns of one side that hold it: suffix, element type, what it is.
SIDE_COLUMNS: dict[Statistic, tuple[tuple[str, pa.DataType, str], ...]] = {
    "ref_logp": (
        ("ref_logp", pa.float32(), "[T] the reference's log-probability of each completion token, in nats"),
    ),
    "ref_entropy": (
        (
            "ref_entropy",
            pa.float16(),
            "[T] entropy of the reference's full distribution at each token, in nats",
        ),
    ),
    "dist": (
        (
            "dist_ids",
            pa.uint32(),
            "[T * n] token ids of the n = head + tail cached entries at each token, head first",
        ),
        ("dist_logp", pa.float16(), "[T * n] the reference's log-probabilities of those entries, in nats"),
    ),
}


def side_columns(statistics: frozenset[Statistic]) -> list[str]:
    """Names, without `chosen_` or `rejected_`, of the columns that hold these statistics."""
    return [suffix for name in STATISTICS if name in statistics for suffix, _, _ in SIDE_COLUMNS[name]]


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
        for name in STATISTICS:
            if name in statistics.names:
                fields += [
                    _list_field(f"{side}_{suffix}", kind, doc) for suffix, kind, doc in SIDE_COLUMNS[name]
                ]
    described = {
        "tdpo.format": FORMAT,
        "tdpo.format_version": str(FORMAT_VERSION),
        "tdpo.head": str(statistics.head),
        "tdpo.tail": str(statistics.tail),
        "tdpo.vocab_size": str(statistics.vocab_size),
    }
    return pa.schema(fields, metadata=described)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of `pyarrow.parquet.ParquetWriter` that store a shard small and fast to read.

    Token ids and log-probabilities hardly repeat, so dictionaries only cost. BYTE_STREAM_SPLIT puts the
    bytes of equal significance side by side, where zstd finds what little there is to find. float16 columns
    stay PLAIN: DuckDB does not read them split. The measurements are in docs/cache-format.md.

    """
    split = [
        f"{field.name}.list.element"
        for field in schema
        if pa.types.is_list(field.type) and field.type.value_type != pa.float16()
    ]
    return {
        "compression": "zstd",
        "compression_level": 9,
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
        "write_statistics": ["pair_id", "row"],
        "write_page_checksum": True,
    }
