"""A cache as a data set for another trainer: token ids and one reference log-probability a side."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...cache.pairs import SIDES, ScoredPair
from ...cache.reader import CacheReader, open_cache
from ...cache.storage.files import explained
from ..errors import ConfigError
from .export_card import export_card

FORMATS = ("parquet", "arrow", "jsonl")
MARK_NAME = "tdpo-export.json"
"""What was exported, for programs; its presence makes a folder an export, which --overwrite may replace."""

CARD_NAME = "README.md"

# Pairs held in memory at a time, and how many times that many make a file.
_BATCH_PAIRS = 512
_FILE_BATCHES = 128


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export_cache` wrote."""

    path: str
    format: str
    rows: int
    """Pairs."""
    completion_tokens: int
    """Of both sides."""
    longest: int
    """Tokens of the longest prompt with its longer completion: a trainer must not truncate below."""
    files: list[str]
    """Names of the data files."""
    bytes: int
    """Of the data files together."""

    def to_json(self) -> str:
        """The report for a program."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.rows:,} pairs, {self.completion_tokens:,} completion tokens, "
            f"{self.bytes / 1e6:,.1f} MB of {self.format}\n  longest      {self.longest:,} tokens of prompt "
            f"and completion\n  how to use   {Path(self.path) / CARD_NAME}"
        )


def export_schema() -> pa.Schema:
    """Columns of an export. Names are those of TRL's ``DPOTrainer``; nothing is nullable in truth."""
    return pa.schema(
        [
            ("pair_id", pa.string()),
            ("row", pa.int64()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("chosen_ids", pa.list_(pa.int32())),
            ("rejected_ids", pa.list_(pa.int32())),
            ("ref_chosen_logps", pa.float32()),
            ("ref_rejected_logps", pa.float32()),
        ]
    )


def export_cache(
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "parquet",
    overwrite: bool = False,
) -> ExportReport:
    """Write a data set from which TRL's ``DPOTrainer`` trains without its reference: ``tdpo cache export``.

    Columns: ``pair_id``, ``row``, ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` as in the cache, and
    ``ref_chosen_logps``, ``ref_rejected_logps``: float32, in nats, the reference's log-probabilities summed
    over a completion's tokens in float64. Holds some hundred pairs in memory at a time. The folder appears
    whole or not at all; its README.md says how to train from it.

    Args:
        cache: the cache's folder.
        out: the folder to write; it must not exist, or be empty.
        format: ``"parquet"``, ``"jsonl"`` (both for ``datasets.load_dataset``) or ``"arrow"`` (for
            ``datasets.load_from_disk``).
        overwrite: replace an earlier export.

    Raises:
        CacheError: no cache there, an unfinished or damaged one, or a disk that cannot be written to.
        ConfigError: an unknown format, or an ``out`` that must not be written to.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    reader = open_cache(cache, statistics=["ref_logp"])
    if not len(reader):
        raise ConfigError(f"{cache} holds no pairs: there is nothing to export")
    target = _free_target(out, overwrite)
    # Beside the target, so that its name appears by a rename.
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with explained("write", target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            report = _write(reader, work, target, format)
            _put_in_place(work, target)
        finally:
            with suppress(OSError):
                shutil.rmtree(work)
    return report


def _free_target(out: str | os.PathLike[str], overwrite: bool) -> Path:
    """The folder to write, after making sure that nothing is lost by it."""
    if "://" in os.fspath(out):
        raise ConfigError(f"--out {out} is a URL: export to a local folder and upload that")
    # resolve() gives "." a name and follows a link to what would be replaced.
    target = Path(out).resolve()
    with explained("look at", target):
        if target.exists() and not target.is_dir():
            raise ConfigError(f"--out {out} is a file: choose a folder")
        names = sorted(os.listdir(target)) if target.exists() else []
    if names and MARK_NAME not in names:
        raise ConfigError(f"--out {out} is not empty (it holds {names[0]}): choose another folder")
    if names and not overwrite:
        raise ConfigError(
            f"--out {out} holds an export: choose another folder, or replace it with --overwrite"
        )
    return target


def _put_in_place(work: Path, target: Path) -> None:
    """Give the finished folder its name; what it replaces is there until the last moment."""
    if not target.exists():
        work.rename(target)
        return
    old = work.with_suffix(".old")
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _write(reader: CacheReader, work: Path, target: Path, format: str) -> ExportReport:
    write = {"parquet": _write_parquet, "arrow": _write_arrow, "jsonl": _write_jsonl}[format]
    tables = _Tables(reader)
    write(tables, work)
    files = sorted(path for path in work.iterdir() if path.suffix in (".parquet", ".arrow", ".jsonl"))
    report = ExportReport(
        path=str(target),
        format=format,
        rows=tables.rows,
        completion_tokens=reader.completion_tokens,
        longest=tables.longest,
        files=[path.name for path in files],
        bytes=sum(path.stat().st_size for path in files),
    )
    mark = {"format": format, "rows": tables.rows, "longest": tables.longest, "identity": reader.identity}
    (work / MARK_NAME).write_text(json.dumps(mark, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    card = export_card(reader.manifest, export_schema(), format, tables.longest)
    (work / CARD_NAME).write_text(card, encoding="utf-8")
    return report


class _Tables:
    """The cache as tables of a few hundred pairs, and what was seen on the way."""

    def __init__(self, reader: CacheReader):
        self._reader, self.rows, self.longest = reader, 0, 0

    def __iter__(self) -> Iterator[pa.Table]:
        records = self._reader.iter()
        while batch := list(islice(records, _BATCH_PAIRS)):
            self.rows += len(batch)
            self.longest = max(self.longest, *(_length(record) for record in batch))
            yield _table(batch)

    def files(self) -> Iterator[tuple[str, Iterator[pa.Table]]]:
        """Names without endings, each with the tables of one file, to be taken before the next name."""
        tables = iter(self)
        for index, first in enumerate(tables):
            yield f"train-{index:05d}", chain([first], islice(tables, _FILE_BATCHES - 1))


def _length(record: ScoredPair) -> int:
    pair = record.pair
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _table(records: list[ScoredPair]) -> pa.Table:
    columns: dict[str, Any] = {
        "pair_id": [record.pair.pair_id for record in records],
        "row": [record.pair.row for record in records],
        "prompt_ids": [record.pair.prompt_ids for record in records],
    }
    for side in SIDES:
        columns[f"{side}_ids"] = [record.pair.ids(side) for record in records]
        sums = [record.side(side).ref_logp.sum(dtype=np.float64) for record in records]
        columns[f"ref_{side}_logps"] = np.asarray(sums, dtype=np.float32)
    schema = export_schema()
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _write_parquet(tables: _Tables, work: Path) -> None:
    for name, parts in tables.files():
        with pq.ParquetWriter(work / f"{name}.parquet", export_schema(), compression="zstd") as writer:
            for table in parts:
                writer.write_table(table)


def _write_jsonl(tables: _Tables, work: Path) -> None:
    for name, parts in tables.files():
        with (work / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for table in parts:
                for row in table.to_pylist():
                    file.write(json.dumps(row) + "\n")


def _write_arrow(tables: _Tables, work: Path) -> None:
    """What ``Dataset.save_to_disk`` writes, from a file that stands in for the data set in memory."""
    import datasets

    whole = work / "whole" / "data.arrow"
    whole.parent.mkdir()
    with pa.ipc.new_stream(whole, export_schema()) as writer:
        for table in tables:
            writer.write_table(table)
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_file(str(whole)).save_to_disk(work)
    finally:
        if bars:
            datasets.enable_progress_bars()
    shutil.rmtree(whole.parent)
