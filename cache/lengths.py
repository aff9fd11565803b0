"""Token lengths of a cache's pairs, read from the columns of token ids alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .errors import CacheError
from .storage.files import Folder

if TYPE_CHECKING:
    from .reader import CacheReader

PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of each pair's parts, int64 [N], in the order of the reader's rows."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def sequence(self) -> np.ndarray:
        """Tokens of each pair's longer sequence, a prompt with a completion, int64 [N]."""
        longest: np.ndarray = self.prompt + np.maximum(self.chosen, self.rejected)
        return longest


def pair_lengths(reader: CacheReader) -> Lengths:
    """Read the lengths of every pair, one row group in memory at a time.

    Raises:
        CacheError: a shard is missing or damaged.

    """
    folder = Folder.at(reader.location)
    found: dict[str, list[np.ndarray]] = {part: [np.empty(0, np.int64)] for part in PARTS}
    for shard in reader.manifest.shards:
        if shard.file is None:
            continue
        try:
            file = folder.parquet(shard.file)
            try:
                for group in range(file.metadata.num_row_groups):
                    columns = [f"{part}_ids" for part in PARTS]
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    for part in PARTS:
                        found[part].append(list_lengths(table, f"{part}_ids"))
            finally:
                file.close(force=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            what = (str(error) or type(error).__name__).splitlines()[0]
            raise CacheError(
                f"{folder.locate(shard.file)} cannot be read ({what}): tdpo cache verify says what is damaged"
            ) from error
    return Lengths(*(np.concatenate(found[part]) for part in PARTS))


def list_lengths(table: pa.Table, column: str) -> np.ndarray:
    """Lengths of the lists in a column, int64 [rows]."""
    return np.diff(np.asarray(table.column(column).combine_chunks().offsets)).astype(np.int64)
