"""Rows of preference data under tdpo's column names: of a known number, or a stream that is read once."""

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, TdpoError
from .columns import column_names
from .quiet import line, quiet

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Row = dict[str, Any]

SHUFFLE_BUFFER = 10_000
"""Rows of a stream among which the next one is drawn when it is shuffled."""

_READ_AT_ONCE = 256
_SEEN_FOR_NAMES = 100


class Table:
    """Rows of a known number, in memory or memory-mapped.

    Args:
        rows: a data set, or a list of dictionaries.
        column_map: tdpo's column names mapped to the data's.
        where: the data's name, for messages.
        limit: take only the first rows.
        shuffle_seed: put the rows into a random order first.

    Raises:
        DataError: the columns are not there; when read, a row's text is not UTF-8.
    """

    def __init__(
        self,
        rows: "Dataset | list[Row]",
        column_map: Mapping[str, str],
        where: str,
        *,
        limit: int | None = None,
        shuffle_seed: int | None = None,
    ):
        self.where = where
        if len(rows) == 0:
            raise DataError(f"{where}: no rows; give data with at least one row")
        found = _names_in(rows) if isinstance(rows, list) else list(rows.column_names)
        names = column_names(found, column_map, where)
        order: Any = range(len(rows))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(len(rows))
        order = order[:limit]
        self.rows: Dataset | list[Row]
        if isinstance(rows, list):
            self.rows = [_renamed(rows[at], names) for at in order]
        else:
            selected = rows.with_format(None).select_columns(list(names.values()))
            selected = selected.rename_columns({theirs: o for o, theirs in names.items() if theirs != o})
            self.rows = (
                selected if len(order) == len(rows) and shuffle_seed is None else selected.select(order)
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Row:
        return self.rows[at]

    def __iter__(self) -> Iterator[Row]:
        if isinstance(self.rows, list):
            yield from self.rows
            return
        for start in range(0, len(self.rows), _READ_AT_ONCE):
            stop = min(start + _READ_AT_ONCE, len(self.rows))
            try:
                block = self.rows[start:stop]
            except UnicodeDecodeError:
                raise self._not_utf8(start, stop) from None
            names = list(block)
            for values in zip(*block.values(), strict=True):
                yield dict(zip(names, values, strict=True))

    def _not_utf8(self, start: int, stop: int) -> DataError:
        assert not isinstance(self.rows, list)
        for row in range(start, stop):
            for name in self.rows.column_names:
                try:
                    self.rows.select_columns([name])[row]
                except UnicodeDecodeError as error:
                    return _no_utf8(self.where, row, f" in column {name!r}", error)
        raise AssertionError("the rows are UTF-8, one by one")


class Stream:
    """Rows that come one after the other, as many as there are; they can be read once.

    Args:
        rows: a streaming data set, or any iterable of dictionaries.
        column_map, where, limit, shuffle_seed: as of :class:`Table`; a shuffled row is drawn among the next
            :data:`SHUFFLE_BUFFER`.
        ours: whether tdpo itself opened the data, so that any error while reading is told as a DataError.

    Raises:
        DataError: the columns are not there; when read, a row that is no dictionary, or that cannot be read.
    """

    def __init__(
        self,
        rows: "IterableDataset | Iterable[Row]",
        column_map: Mapping[str, str],
        where: str,
        *,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        ours: bool = False,
    ):
        self.where = where
        self._ours = ours
        self._seen: deque[Row] = deque()
        self._read = False
        if (known := getattr(rows, "column_names", None)) is not None:
            names = column_names(known, column_map, where)
            rows = rows.with_format(None).select_columns(list(names.values()))  # type: ignore[union-attr]
        checked = self._checked(_shuffled(rows, shuffle_seed))
        if known is None:
            first = list(itertools.islice(checked, min(_SEEN_FOR_NAMES, limit or _SEEN_FOR_NAMES)))
            names = column_names(_names_in(first), column_map, where, complete=False) if first else {}
            checked = itertools.chain(first, checked)
        self._rows = (_renamed(row, names) for row in itertools.islice(checked, limit))

    def __iter__(self) -> Iterator[Row]:
        if self._read:
            raise ValueError(f"{self.where}: a stream is read once")
        self._read = True
        while self._seen:
            yield self._seen.popleft()
        yield from self._rows

    def peek(self) -> Iterator[Row]:
        """The first rows, as many as are asked for; reading begins with them all the same."""
        for row in self._rows:
            self._seen.append(row)
            yield row

    def _checked(self, rows: Iterator[Any]) -> Iterator[Row]:
        with quiet() if self._ours else contextlib.nullcontext():
            yield from self._told(rows)

    def _told(self, rows: Iterator[Any]) -> Iterator[Row]:
        for number in itertools.count():
            try:
                row = next(rows)
            except StopIteration:
                return
            except TdpoError:
                raise
            except UnicodeDecodeError as error:
                raise _no_utf8(self.where, number, " or soon after", error) from None
            except Exception as error:
                if not self._ours:
                    raise
                raise DataError(
                    f"{self.where}: reading stopped at row {number} ({line(error)}); check the data, and the "
                    "connection where it is remote"
                ) from None
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{self.where}: row {number} is {type(row).__name__}; every row must be a dict with "
                    "'chosen' and 'rejected'"
                )
            yield dict(row)


def _shuffled(rows: Any, seed: int | None) -> Iterator[Any]:
    if seed is None:
        yield from rows
        return
    if hasattr(rows, "shuffle"):
        # A streaming data set also shuffles its files.
        yield from rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        return
    rng, rest = np.random.default_rng(seed), iter(rows)
    buffer = list(itertools.islice(rest, SHUFFLE_BUFFER))
    for row in rest:
        at = int(rng.integers(len(buffer)))
        yield buffer[at]
        buffer[at] = row
    for at in rng.permutation(len(buffer)):
        yield buffer[at]


def _names_in(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    return {ours: row[theirs] for ours, theirs in names.items() if theirs in row}


def _no_utf8(where: str, row: int, column: str, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start : error.start + 1].hex()
    return DataError(
        f"{where}, row {row}{column}: not UTF-8 text (byte 0x{byte}); write the file again from the text"
    )
