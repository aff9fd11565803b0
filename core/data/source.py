"""Opening preference data: local files, a hub name, rows in memory or a stream of them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .columns import COLUMNS, Form, detect_form
from .opening import Opened, of_dict, open_named
from .rows import Stream, Table

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class Source:
    """Preference data, opened.

    ``rows`` are dictionaries with ``chosen`` and ``rejected`` and, where the data has them, ``prompt``,
    ``tools`` and ``chat_template_kwargs``; a :class:`~.rows.Stream` of them can be read once. ``identity``
    says what is read, for the manifest, as far as that is known before the rows are.
    """

    rows: Table | Stream
    identity: dict[str, Any]
    form: Form

    @property
    def length(self) -> int | None:
        """The number of rows; None where only reading them will tell."""
        return len(self.rows) if isinstance(self.rows, Table) else None

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of rows of streamed data is not known before they are read")
        return self.length


def is_named(dataset: Any) -> bool:
    """Whether ``dataset`` names data (paths, patterns, a hub name) rather than being it."""
    if isinstance(dataset, list | tuple):
        return bool(dataset) and all(isinstance(each, str | os.PathLike) for each in dataset)
    return isinstance(dataset, str | os.PathLike)


def open_source(
    dataset: "str | Path | Sequence[str | Path] | Dataset | IterableDataset | Iterable[dict[str, Any]]",
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    streaming: bool = False,
) -> Source:
    """Open preference data without holding it in memory.

    Args:
        dataset: a local .jsonl, .json, .csv or .parquet file (text also as .gz), a folder or glob of
            such files, several of these, a folder written by ``Dataset.save_to_disk``, a hub name, or rows in
            memory: a ``Dataset``, a streaming ``IterableDataset``, a list or any iterable of dicts.
        split: which split; a slice such as ``train[:1000]`` is understood for files and hub names.
        config_name: the hub data set's configuration.
        revision: the hub data set's branch, tag or commit.
        column_map: tdpo's column names mapped to the data's.
        limit: take only the first rows, of the shuffled order where there is one.
        shuffle_seed: read the rows in a random order: a permutation of all rows or, of a stream, each drawn
            from the next :data:`~.rows.SHUFFLE_BUFFER`.
        streaming: read files and hub data row by row, with no copy of them on the disk.

    Raises:
        DataError: one line that says what cannot be read, where, and what to do.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}: at least one row must be taken")
    columns = column_map or {}
    opened, where = _open(dataset, split, config_name, revision, columns, streaming)
    identity: dict[str, Any] = {"split": split, "column_map": dict(columns)}
    if shuffle_seed is not None:
        identity["shuffle_seed"] = shuffle_seed
    rows: Table | Stream
    if _has_length(opened.rows):
        rows = Table(opened.rows, columns, where, limit=limit, shuffle_seed=shuffle_seed)
        form = detect_form(rows, where)
    else:
        ours = is_named(dataset)
        rows = Stream(opened.rows, columns, where, limit=limit, shuffle_seed=shuffle_seed, ours=ours)
        form = detect_form(rows.peek(), where)
    return Source(rows, opened.identity | identity, form)


def _open(
    dataset: Any,
    split: str,
    config_name: str | None,
    revision: str | None,
    column_map: Mapping[str, str],
    streaming: bool,
) -> tuple[Opened, str]:
    if not is_named(dataset):
        return _open_memory(dataset, split), "the data in memory"
    given = [dataset] if isinstance(dataset, str | os.PathLike) else list(dataset)
    names = [os.fspath(each) for each in given]
    columns = [column_map.get(name, name) for name in COLUMNS]
    opened = open_named(
        names, split, config_name=config_name, revision=revision, columns=columns, streaming=streaming
    )
    return opened, names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _open_memory(dataset: Any, split: str) -> Opened:
    import datasets

    where, identity = "the data in memory", {"source": "memory"}
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        dataset = of_dict(dataset, split, where)
    if isinstance(dataset, list | tuple):
        for at, row in enumerate(dataset):
            if not isinstance(row, dict):
                raise DataError(
                    f"{where}: row {at} is {type(row).__name__}; every row must be a dict with 'chosen' and "
                    "'rejected'"
                )
        return Opened(list(dataset), identity)
    if isinstance(dataset, str | bytes | Mapping) or not isinstance(dataset, Iterable):
        raise DataError(
            f"{where} is {type(dataset).__name__}: give a path, a hub name, a datasets.Dataset or "
            "IterableDataset, or dicts in a list or any iterable"
        )
    return Opened(dataset, identity)


def _has_length(rows: Any) -> bool:
    import datasets

    return isinstance(rows, list | datasets.Dataset)
