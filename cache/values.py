"""What the values of a row group must be: every check of them that needs no model.

A finding is (row, column, what is wrong there); a column wrong at several tokens of a row is one finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .entries import Entries, unpacked
from .pairs import SIDES, pair_id
from .schema import ENTRY_COLUMNS, side_columns

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

    def sums(self) -> NDArray[np.int64]:
        """Add up each row's values [R]."""
        ends = np.cumsum(self.lengths)
        total = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        return total[ends] - total[ends - self.lengths]


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
    for row in rows[ids.lengths == 0].tolist():
        yield row, f"{side}_ids", "the completion has no tokens"
    if disagreements := list(_check_lengths(side, rows, columns, statistics)):
        yield from disagreements
        return
    tokens, ref_logp = _Tokens(rows, ids.lengths), columns[f"{side}_ref_logp"].values
    yield from tokens.findings(f"{side}_ref_logp", _no_log_probability(ref_logp), _LOG_PROBABILITY, ref_logp)
    if statistics.entropy:
        entropy = columns[f"{side}_ref_entropy"].values.astype(np.float64)
        largest = math.log(max(statistics.vocab_size, 1))
        inside = (entropy >= -_SLACK) & (entropy <= largest * (1 + FLOAT16_ERROR) + _SLACK)
        what = f"an entropy lies in 0 .. {largest:.4g}, the logarithm of the vocabulary's size"
        yield from tokens.findings(f"{side}_ref_entropy", ~inside, what, entropy)
    checks: list[Iterator[_Check]] = []
    if statistics.entropy:
        checks.append(_check_float16("ref_entropy", columns[f"{side}_ref_entropy"].values))
    if "dist" in statistics.names:
        distribution = _Distribution.of(_entries(side, columns), statistics)
        checks += [_check_float16("dist_logp", distribution.logp)]
        checks += [distribution.faults(), distribution.contradictions(ids.values, ref_logp)]
    if statistics.hidden is not None:
        hidden = columns[f"{side}_ref_hidden"].values.reshape(-1, statistics.hidden_size)
        checks.append(_check_hidden(hidden, statistics.hidden))
    for suffix, bad, what, shown in (check for some in checks for check in some):
        yield from tokens.findings(f"{side}_{suffix}", bad, what, shown)


def _entries(side: Side, columns: dict[str, _Lists]) -> Entries:
    return Entries(*(columns[f"{side}_{name}"].values for name in ENTRY_COLUMNS))


def _check_lengths(
    side: Side, rows: NDArray[np.int64], columns: dict[str, _Lists], statistics: CachedStatistics
) -> Iterator[Finding]:
    """Yield the rows at which a column does not hold what the side's tokens take."""
    tokens = columns[f"{side}_ids"].lengths
    for suffix in side_columns(statistics.names):
        lengths, wanted = columns[f"{side}_{suffix}"].lengths, tokens * (statistics.width(suffix) or 1)
        if suffix in ENTRY_COLUMNS[:2]:
            wanted = tokens
        elif suffix in ENTRY_COLUMNS:
            heads, tails = (columns[f"{side}_{name}"] for name in ENTRY_COLUMNS[:2])
            if (heads.lengths != tokens).any() or (tails.lengths != tokens).any():
                continue
            wanted = heads.sums() + tails.sums()
        for at in np.flatnonzero(lengths != wanted):
            what = f"holds {lengths[at]} values, the {tokens[at]} tokens of {side}_ids take {wanted[at]}"
            yield int(rows[at]), f"{side}_{suffix}", what
    if "dist" in statistics.names:
        owners = np.repeat(np.arange(len(rows)), tokens)
        for suffix, most in zip(ENTRY_COLUMNS[:2], (statistics.head, statistics.tail), strict=True):
            counts = columns[f"{side}_{suffix}"]
            if (counts.lengths == tokens).all():
                for at in np.unique(owners[counts.values > most]):
                    yield int(rows[at]), f"{side}_{suffix}", f"a token has at most {most}"


_LOG_PROBABILITY = "a log-probability is finite and at most 0"

# A column without its side, the bad tokens [N] or entries [N, n] of it, what is wrong, the values to show.
_Check = tuple[str, "NDArray[np.bool_]", str, "NDArray[Any] | None"]


def _check_float16(column: str, values: NDArray[Any]) -> Iterator[_Check]:
    """Yield the values [N] or [N, n] of a float32 column of float16 values that are none."""
    with np.errstate(over="ignore", invalid="ignore"):
        inexact = np.isfinite(values) & (values.astype(np.float16).astype(np.float32) != values)
    yield column, inexact, "is no float16 value", values


def _check_hidden(hidden: NDArray[np.float32], dtype: str) -> Iterator[_Check]:
    """Yield what is wrong with hidden states [N, d] of this precision."""
    finite = np.isfinite(hidden)
    yield "ref_hidden", ~finite, "a hidden state is finite", hidden
    if dtype == "bfloat16":
        # bfloat16 is the upper half of float32.
        below = hidden.view(np.uint32) & 0xFFFF != 0
        yield "ref_hidden", finite & below, "is no bfloat16 value", hidden


@dataclass(frozen=True)
class _Distribution:
    """The cached entries at N tokens: ids int64 [N, n] and log-probabilities float64 [N, n], head first.

    An entry that is not `there` has an id of its own, below 0, and is of log-probability -inf.
    """

    ids: NDArray[np.int64]
    logp: NDArray[np.float64]
    there: NDArray[np.bool_]
    statistics: CachedStatistics

    @classmethod
    def of(cls, entries: Entries, statistics: CachedStatistics) -> _Distribution:
        """Spread entries that fit."""
        # Marked by where they are, not by -inf: that a damaged entry may hold.
        marks = Entries(entries.head, entries.tail, entries.ids, np.zeros(len(entries.ids)))
        ids, absent = unpacked(marks, statistics.head, statistics.tail)
        _, logp = unpacked(entries, statistics.head, statistics.tail)
        there = absent == 0
        spread = np.where(there, ids.astype(np.int64), -1 - np.arange(ids.shape[1]))
        return cls(spread, logp.astype(np.float64), there, statistics)

    @property
    def last(self) -> NDArray[np.float64]:
        """Log-probability of the last entry of each head [N, 1]; infinite where there is none."""
        k = self.statistics.head
        head = np.where(self.there[:, :k], self.logp[:, :k], np.inf)
        return head.min(1, initial=np.inf, keepdims=True)

    def faults(self) -> Iterator[_Check]:
        """Yield what the entries break by themselves."""
        k, v = self.statistics.head, self.statistics.vocab_size
        yield "dist_ids", self.ids >= v, _not_below(self.statistics), self.ids
        yield "dist_logp", self.there & _no_log_probability(self.logp), _LOG_PROBABILITY, self.logp
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
            likelier[:, k:] = self.logp[:, k:] > self.last
            yield "dist_logp", likelier, "a draw from the tail is likelier than the head's last", self.logp
        yield from self._counts()
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
            missed = ~same[:, :k].any(1) & (ref > self.last[:, 0] + tolerance)
            yield "ref_logp", missed, "likelier than the head's last, but not in the head", ref

    def _counts(self) -> Iterator[_Check]:
        """Yield the tokens whose number of entries is not what the shares of probability ask for."""
        k, s = self.statistics.head, self.statistics
        head = self.there[:, :k].sum(1)
        p = np.exp(self.logp[:, :k])
        slack = _SLACK + FLOAT16_ERROR * np.where(p > 0, p * np.abs(self.logp[:, :k]), 0).sum(1)
        early = (head < k) & (p.sum(1) < s.head_mass - slack)
        yield "dist_head", early, f"the head ends before it holds {s.head_mass:g} of the probability", head
        draws = self.there[:, k:].sum(1)
        share = np.minimum((1 - p.sum(1) - slack) / s.tail_mass, 1) if s.tail_mass else np.ones(len(p))
        few = draws < np.maximum(np.ceil(s.tail * share), min(s.tail, 1))
        yield "dist_tail", few, "there are fewer draws than what the head leaves asks for", draws

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
