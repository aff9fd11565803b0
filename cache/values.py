"""What the values of a row group must be: every check of them that needs no model.

A finding is (row, column, what is wrong there); a column wrong at several tokens of a row is one finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .pairs import SIDES, pair_id
from .schema import side_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from .pairs import Side
    from .schema import CachedStatistics

Finding = tuple[int | None, str | None, str]

# Nats by which rounding in float32 may lift a log-probability above 0, or an entropy out of its range.
_SLACK = 1e-3
# Largest relative error of a value rounded to float16, twice over.
FLOAT16_ERROR = 2.0**-10
FLOAT16_MIN = float(np.finfo(np.float16).min)


def check_values(table: pa.Table, statistics: CachedStatistics) -> Iterator[Finding]:
    """Yield what is wrong with the values of a row group whose schema is right.

    Where the lengths of one side's columns disagree, nothing further is said of that side in this row group.
    """
    columns = {name: _Lists.of(table, name) for name in table.column_names if name not in ("pair_id", "row")}
    rows = table.column("row").to_numpy()
    yield from _check_pair_ids(table, rows, columns)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        ids = columns[name].values
        tokens = _Tokens(rows, columns[name].lengths)
        outside = (ids < 0) | (ids >= statistics.vocab_size)
        yield from tokens.findings(name, outside, _not_below(statistics), ids)
    # What is not finite is found as such; what follows from it may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        for side in SIDES:
            yield from _check_side(side, rows, columns, statistics)


@dataclass(frozen=True)
class _Lists:
    """A list column: all rows' values end to end [N], and the length of each row's list [R]."""

    values: NDArray[Any]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, name: str) -> _Lists:
        array = table.column(name).combine_chunks()
        return cls(array.flatten().to_numpy(), array.value_lengths().to_numpy().astype(np.int64))

    def split(self) -> list[NDArray[Any]]:
        return np.split(self.values, np.cumsum(self.lengths)[:-1])


class _Tokens:
    """Which row, and which place in it, each token of a row group's completions has."""

    def __init__(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self.rows = rows
        self.owner = np.repeat(np.arange(len(rows)), lengths)
        self.starts = np.cumsum(lengths) - lengths

    def findings(
        self, column: str, bad: NDArray[np.bool_], what: str, values: NDArray[Any] | None = None
    ) -> Iterator[Finding]:
        """Yield a finding for each row with bad tokens [N] or entries [N, n], which names the first."""
        entries = bad if bad.ndim == 2 else None
        flat = np.flatnonzero(bad if entries is None else entries.any(1))
        owners, first, counts = np.unique(self.owner[flat], return_index=True, return_counts=True)
        for owner, at, count in zip(owners, flat[first], counts, strict=True):
            place, where = f"token {at - self.starts[owner]}", [at]
            if entries is not None:
                where.append(entries[at].argmax())
                place += f", entry {where[1]}"
            value = "" if values is None else f"{_number(values[tuple(where)])}, "
            more = f" (so at {count} tokens)" if count > 1 else ""
            yield int(self.rows[owner]), column, f"{place}: {value}{what}{more}"


def _check_pair_ids(
    table: pa.Table, rows: NDArray[np.int64], columns: dict[str, _Lists]
) -> Iterator[Finding]:
    # As bytes: a damaged string need not be UTF-8.
    found = table.column("pair_id").cast("binary").to_pylist()
    lists = (columns[name].split() for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    for row, cached, *ids in zip(rows.tolist(), found, *lists, strict=True):
        if any(len(part) and part.min() < 0 for part in ids):
            continue  # has no id, and is found as out of range
        if cached.decode(errors="replace") != (own := pair_id(*ids)):
            yield row, "pair_id", f"is {cached.decode(errors='replace')!r}, its tokens have the id {own!r}"


def _check_side(
    side: Side, rows: NDArray[np.int64], columns: dict[str, _Lists], statistics: CachedStatistics
) -> Iterator[Finding]:
    ids = columns[f"{side}_ids"]
    disagree = False
    for row in rows[ids.lengths == 0].tolist():
        yield row, f"{side}_ids", "the completion has no tokens"
    for suffix in side_columns(statistics.names):
        width = statistics.entries if suffix.startswith("dist_") else 1
        lengths, wanted = columns[f"{side}_{suffix}"].lengths, ids.lengths * width
        for at in np.flatnonzero(lengths != wanted):
            disagree = True
            yield (
                int(rows[at]),
                f"{side}_{suffix}",
                f"holds {lengths[at]} values, the {ids.lengths[at]} tokens of {side}_ids take {wanted[at]}",
            )
    if disagree:
        return
    tokens, ref_logp = _Tokens(rows, ids.lengths), columns[f"{side}_ref_logp"].values
    yield from tokens.findings(f"{side}_ref_logp", _no_log_probability(ref_logp), _LOG_PROBABILITY, ref_logp)
    if statistics.entropy:
        entropy = columns[f"{side}_ref_entropy"].values.astype(np.float64)
        largest = math.log(max(statistics.vocab_size, 1))
        inside = (entropy >= -_SLACK) & (entropy <= largest * (1 + FLOAT16_ERROR) + _SLACK)
        what = f"an entropy lies in 0 .. {largest:.4g}, the logarithm of the vocabulary's size"
        yield from tokens.findings(f"{side}_ref_entropy", ~inside, what, entropy)
    if "dist" in statistics.names:
        shape = len(ids.values), statistics.entries
        distribution = _Distribution(
            columns[f"{side}_dist_ids"].values.reshape(shape).astype(np.int64),
            columns[f"{side}_dist_logp"].values.reshape(shape).astype(np.float64),
            statistics,
        )
        for suffix, bad, what, values in distribution.faults():
            yield from tokens.findings(f"{side}_{suffix}", bad, what, values)
        for suffix, bad, what, values in distribution.contradictions(ids.values, ref_logp):
            yield from tokens.findings(f"{side}_{suffix}", bad, what, values)


_LOG_PROBABILITY = "a log-probability is finite and at most 0"

# A column without its side, the bad tokens [N] or entries [N, n] of it, what is wrong, the values to show.
_Check = tuple[str, "NDArray[np.bool_]", str, "NDArray[Any] | None"]


@dataclass(frozen=True)
class _Distribution:
    """The cached entries at N tokens: ids int64 [N, n] and log-probabilities float64 [N, n], head first."""

    ids: NDArray[np.int64]
    logp: NDArray[np.float64]
    statistics: CachedStatistics

    def faults(self) -> Iterator[_Check]:
        """Yield what the entries break by themselves."""
        k, v = self.statistics.head, self.statistics.vocab_size
        yield "dist_ids", self.ids >= v, _not_below(self.statistics), self.ids
        yield "dist_logp", _no_log_probability(self.logp), _LOG_PROBABILITY, self.logp
        head, tail = self.ids[:, :k], self.ids[:, k:]
        unsorted = np.zeros(self.ids.shape, dtype=bool)
        unsorted[:, 1:k] = self.logp[:, 1:k] > self.logp[:, : max(k - 1, 0)]
        yield "dist_logp", unsorted, "the head is not sorted, likeliest first", self.logp
        repeats = (np.diff(np.sort(head, axis=1), axis=1) == 0).any(1)
        yield "dist_ids", repeats, "the head lists a token twice", None
        if k and tail.size:
            drawn = np.zeros(self.ids.shape, dtype=bool)
            for entry in range(k):  # not all at once: [N, m, k] may be large
                drawn[:, k:] |= tail == head[:, entry : entry + 1]
            yield "dist_ids", drawn, "a draw from the tail is in the head", self.ids
            likelier = np.zeros(self.ids.shape, dtype=bool)
            likelier[:, k:] = self.logp[:, k:] > self.logp[:, k - 1 : k]
            yield "dist_logp", likelier, "a draw from the tail is likelier than the head's last", self.logp
        mass, slack = self._mass()
        yield "dist_logp", mass > 1 + slack, "the sum of the entries' probabilities, is above 1", mass
        if k == v:
            yield "dist_logp", mass < 1 - slack, "the sum over the whole vocabulary, is below 1", mass

    def contradictions(self, tokens: NDArray[Any], ref_logp: NDArray[Any]) -> Iterator[_Check]:
        """Yield where the entries and the log-probabilities [N] of the completions' tokens [N] disagree."""
        k = self.statistics.head
        ref = np.maximum(ref_logp.astype(np.float64), FLOAT16_MIN)
        tolerance = _SLACK + FLOAT16_ERROR * np.abs(ref)
        same = self.ids == tokens[:, None]
        apart = same & (np.abs(self.logp - ref[:, None]) > tolerance[:, None])
        yield "dist_logp", apart, "ref_logp says otherwise of the same token", self.logp
        if k:
            missed = ~same[:, :k].any(1) & (ref > self.logp[:, k - 1] + tolerance)
            yield "ref_logp", missed, "likelier than the head's last, but not in the head", ref

    def _mass(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what the entries' probabilities add up to, repeated draws once, and what float16 may add."""
        order = np.argsort(self.ids, axis=1, kind="stable")
        ids, logp = (np.take_along_axis(values, order, axis=1) for values in (self.ids, self.logp))
        p = np.exp(logp)
        p[:, 1:][ids[:, 1:] == ids[:, :-1]] = 0
        error = np.where(p > 0, p * np.abs(logp), 0).sum(1)
        return p.sum(1), _SLACK + FLOAT16_ERROR * error


def _number(value: Any) -> str:
    return str(value) if isinstance(value, np.integer) else f"{value:.6g}"


def _no_log_probability(values: NDArray[Any]) -> NDArray[np.bool_]:
    return ~(np.isfinite(values) & (values <= _SLACK))


def _not_below(statistics: CachedStatistics) -> str:
    return f"an id lies in 0 .. {statistics.vocab_size - 1}"
