"""All pairs of a data set, tokenised once into a temporary Arrow file and read back window by window."""

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.pairs import Pair
from ..errors import DataError
from .reasons import Skip

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("pair_id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
    ]
)
"""One record a source row; a skipped row has a ``reason`` and nothing else."""

_TELL_EVERY = 256
_FIRST_ROWS = 5


class Rows(Protocol):
    """What is spooled: something with ``rows`` to iterate over, such as a Source."""

    @property
    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Rows, in the order that counts them."""


class PairSpool:
    """Pairs of a data set by window: window ``i`` holds the source rows [i * window, (i + 1) * window).

    A context manager. Its temporary file has no name where the system can do that, so that nothing is left
    of it however the process ends.

    Attributes:
        source_rows: rows of the data.
        kept: rows that gave a pair.
        tokens: (prompt tokens, completion tokens of both sides) of all pairs.
        longest: most tokens of a prompt and its longer completion; 0 without pairs.
        skipped: reason -> ``{"count": n, "first_rows": [...]}``.
        details: reason -> what was said about its first row, for reasons that have such.
    """

    def __init__(self, file: IO[bytes], window: int):
        self._file = file
        self.window_rows = window
        self.source_rows = 0
        self.kept = 0
        self.tokens = (0, 0)
        self.longest = 0
        self.skipped: dict[str, dict[str, Any]] = {}
        self.details: dict[str, str] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._reader: pa.ipc.RecordBatchFileReader | None = None

    @property
    def content(self) -> str:
        """A hash of what was made of the rows, in order: pair ids, and reasons to skip. 32 hex digits."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return -(-self.source_rows // self.window_rows)

    def window(self, index: int) -> tuple[list[Pair], dict[str, list[int]]]:
        """Pairs of window ``index`` in source order, and its skipped rows' numbers by reason."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        batch = self._open().get_batch(index)
        rows = batch.column("row").to_pylist()
        reasons = batch.column("reason").to_pylist()
        ids = batch.column("pair_id").to_pylist()
        parts = [_lists(batch.column(name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        pairs: list[Pair] = []
        skipped: dict[str, list[int]] = {}
        for at, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
            if reason is None:
                pairs.append(Pair(ids[at], row, parts[0](at), parts[1](at), parts[2](at)))
            else:
                skipped.setdefault(reason, []).append(row)
        return pairs, skipped

    def scored_tokens(self, index: int) -> int:
        """Tokens that scoring window ``index`` passes through a model: the prompt once for each side."""
        batch = self._open().get_batch(index)
        prompt, chosen, rejected = (
            pc.sum(pc.list_value_length(batch.column(name))).as_py() or 0
            for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        return int(2 * prompt + chosen + rejected)

    def _open(self) -> "pa.ipc.RecordBatchFileReader":
        if self._file.closed:
            raise ValueError("the spool is closed")
        if self._reader is None:
            self._reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        return self._reader

    def close(self) -> None:
        """Remove the temporary file; pairs that were read stay valid."""
        self._reader = None
        self._file.close()

    def __enter__(self) -> "PairSpool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, made: Pair | Skip, row: int) -> None:
        self.source_rows += 1
        self._digest.update(f"{made.reason if isinstance(made, Skip) else made.pair_id}\n".encode())
        if isinstance(made, Skip):
            entry = self.skipped.setdefault(made.reason, {"count": 0, "first_rows": []})
            entry["count"] += 1
            if len(entry["first_rows"]) < _FIRST_ROWS:
                entry["first_rows"].append(row)
            if made.detail:
                self.details.setdefault(made.reason, made.detail)
            return
        self.kept += 1
        prompt, chosen, rejected = len(made.prompt_ids), len(made.chosen_ids), len(made.rejected_ids)
        self.tokens = (self.tokens[0] + prompt, self.tokens[1] + chosen + rejected)
        self.longest = max(self.longest, prompt + max(chosen, rejected))


def spool_pairs(
    source: Rows,
    maker: Callable[[int, Mapping[str, Any]], Pair | Skip],
    *,
    window: int,
    progress: Callable[[int], None] | None = None,
    directory: str | Path | None = None,
) -> PairSpool:
    """Tokenise every row once into a temporary file; memory holds one window of pairs at a time.

    Args:
        source: the data.
        maker: row number and row to a pair or the reason why not; a PairMaker.
        window: source rows a window.
        progress: called now and then with the number of rows done so far.
        directory: where the file goes; the system's temporary folder unless given.

    Raises:
        DataError: the file cannot be written; and what ``maker`` raises. The file is gone then.
    """
    if window < 1:
        raise ValueError(f"window is {window}: at least one row")
    folder = Path(tempfile.gettempdir() if directory is None else directory)
    try:
        file = tempfile.TemporaryFile(prefix="tdpo-pairs-", suffix=".arrow", dir=folder)  # noqa: SIM115
    except OSError as error:
        raise _cannot_write(folder, error) from None
    spool = PairSpool(file, window)
    try:
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer:
            rows = _made(source, maker, spool, progress)
            while made := list(itertools.islice(rows, window)):
                try:
                    writer.write_batch(_batch(spool.source_rows - len(made), made))
                except OSError as error:
                    raise _cannot_write(folder, error) from None
    except BaseException:
        spool.close()
        raise
    return spool


def _made(
    source: Rows,
    maker: Callable[[int, Mapping[str, Any]], Pair | Skip],
    spool: PairSpool,
    progress: Callable[[int], None] | None,
) -> Iterator[Pair | Skip]:
    for number, row in enumerate(source.rows):
        made = maker(number, row)
        spool._count(made, number)
        if progress is not None and spool.source_rows % _TELL_EVERY == 0:
            progress(spool.source_rows)
        yield made
    if progress is not None:
        progress(spool.source_rows)


def _batch(start: int, made: list[Pair | Skip]) -> pa.RecordBatch:
    pairs = [None if isinstance(each, Skip) else each for each in made]
    columns = {
        "row": range(start, start + len(made)),
        "reason": [each.reason if isinstance(each, Skip) else None for each in made],
        "pair_id": [pair and pair.pair_id for pair in pairs],
    }
    columns |= {
        name: [None if pair is None else getattr(pair, name) for pair in pairs] for name in SCHEMA.names[3:]
    }
    return pa.record_batch([pa.array(columns[f.name], type=f.type) for f in SCHEMA], schema=SCHEMA)


def _lists(column: pa.ListArray) -> Callable[[int], np.ndarray]:
    """Row number -> int32 [T]. One copy a window: writable, and valid after the file is gone."""
    values = column.values.to_numpy(zero_copy_only=True).copy()
    offsets = column.offsets.to_numpy()
    return lambda at: values[offsets[at] : offsets[at + 1]]


def _cannot_write(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or " ".join(str(error).split())
    return DataError(
        f"{folder}: cannot write the tokenised rows there ({reason}); free space, or set TMPDIR elsewhere"
    )


def check_skipped(spool: PairSpool, max_skipped: float) -> None:
    """Raise DataError where more than the share ``max_skipped`` of the rows was skipped, or all were."""
    skipped = spool.source_rows - spool.kept
    if spool.kept and skipped <= max_skipped * spool.source_rows:
        return
    by_count = sorted(spool.skipped.items(), key=lambda item: -item[1]["count"])
    reasons = "; ".join(skipped_text(reason, entry, spool.details.get(reason)) for reason, entry in by_count)
    share = 100 * skipped / max(spool.source_rows, 1)
    advice = f"mend the data, or raise --max-skipped (now {max_skipped:g})" if spool.kept else "mend the data"
    raise DataError(
        f"{skipped:,} of {spool.source_rows:,} rows ({share:.1f} %) cannot be used: {reasons}; {advice}"
    )


def skipped_text(reason: str, entry: Mapping[str, Any], detail: str | None) -> str:
    """How many rows a reason has and which come first, in words."""
    rows = ", ".join(map(str, entry["first_rows"]))
    more = ", ..." if entry["count"] > len(entry["first_rows"]) else ""
    plural = "row" if entry["count"] == 1 else "rows"
    return f"{entry['count']:,} {reason} ({plural} {rows}{more}{': ' + detail if detail else ''})"
