"""Opening preference data: local files, a hub name or rows in memory, as memory-mapped Arrow rows."""

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .columns import Form, detect_form, standard_columns
from .files import base_split, check_file, csv_header, describe_file, find_files, json_columns, kind_of
from .text import well_formed

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Source:
    """Preference data, opened.

    ``rows`` has the columns ``chosen`` and ``rejected`` and, where the data has them, ``prompt``,
    ``tools`` and ``chat_template_kwargs``. ``identity`` says what was read, for the manifest.
    """

    rows: "Dataset"
    identity: dict[str, Any]
    form: Form

    def __len__(self) -> int:
        return len(self.rows)


def open_source(
    dataset: "str | Path | Dataset | list[dict[str, Any]]",
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Source:
    """Open preference data without holding it in memory.

    Args:
        dataset: a local .jsonl, .json, .csv or .parquet file (text also as .gz), a folder or glob of
            such files, a folder written by ``Dataset.save_to_disk``, a hub name, or rows in memory.
        split: which split; a slice such as ``train[:1000]`` is understood for files and hub names.
        config_name: the hub data set's configuration.
        revision: the hub data set's branch, tag or commit.
        column_map: tdpo's column names mapped to the data's.
        limit: take only the first rows.

    Raises:
        DataError: one line that says what cannot be read, where, and what to do.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}: at least one row must be taken")
    if isinstance(dataset, (str, Path)):
        where = os.fspath(dataset)
        rows, identity = _open_named(where, split, config_name, revision)
    else:
        where = "the data in memory"
        rows, identity = _open_memory(dataset, split)
    if len(rows) == 0:
        raise DataError(f"{where}: no rows; give data with at least one row")
    rows = standard_columns(rows, column_map or {}, where)
    if limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    identity |= {"split": split, "column_map": dict(column_map or {}), "rows": len(rows)}
    if identity["source"] == "memory":
        identity["fingerprint"] = _content_hash(rows)
    return Source(rows, identity, detect_form(rows, where))


def _open_named(
    name: str, split: str, config_name: str | None, revision: str | None
) -> tuple["Dataset", dict[str, Any]]:
    folder = Path(name).expanduser()
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _open_saved(name, folder, split)
    files = find_files(name, split)
    if files is None:
        return _open_hub(name, split, config_name, revision)
    for path in files:
        check_file(path)
    rows = _load_files(files, split)
    root = Path(os.path.commonpath([path.parent for path in files]))
    return rows, {"source": name, "files": [describe_file(path, root) for path in files]}


def _open_memory(dataset: Any, split: str) -> tuple["Dataset", dict[str, Any]]:
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        dataset = _of_dict(dataset, split, "the data in memory")
    if isinstance(dataset, datasets.Dataset):
        return dataset, {"source": "memory"}
    if not isinstance(dataset, list) or not all(isinstance(row, dict) for row in dataset):
        raise DataError(
            f"the data in memory is {type(dataset).__name__}: give a path, a hub name, a datasets.Dataset "
            "(not a streaming one) or a list of dicts"
        )
    names = list(dict.fromkeys(name for row in dataset for name in row))
    columns = {name: [row.get(name) for row in dataset] for name in names}
    try:
        return datasets.Dataset.from_dict(columns), {"source": "memory"}
    except Exception:  # pyarrow's many: a column of mixed types, a lone surrogate
        columns = _well_formed(columns)
        return datasets.Dataset.from_dict(columns, features=_json_features(names)), {"source": "memory"}


def _well_formed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_well_formed(each) for each in value]
    return well_formed(value) if isinstance(value, str) else value


def _open_saved(name: str, folder: Path, split: str) -> tuple["Dataset", dict[str, Any]]:
    import datasets

    try:
        with _quiet():
            loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{name}: not a folder that datasets can load from disk ({_line(error)})") from None
    files = [describe_file(path, folder) for path in sorted(folder.rglob("*.arrow"))]
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _of_dict(loaded, split, name)
        files = [each for each in files if each["name"].startswith(f"{split}/")]
    return loaded, {"source": name, "files": files}


def _of_dict(loaded: Any, split: str, where: str) -> "Dataset":
    if split not in loaded:
        raise DataError(f"{where}: unknown split {split!r}; it has {', '.join(map(repr, loaded))}")
    return loaded[split]


def _open_hub(
    name: str, split: str, config_name: str | None, revision: str | None
) -> tuple["Dataset", dict[str, Any]]:
    import datasets

    try:
        with _quiet():
            rows = datasets.load_dataset(name, config_name, split=split, revision=revision)
    except (ConnectionError, OSError) as error:  # datasets' "not found" is a FileNotFoundError
        raise DataError(
            f"{name}: neither a local path nor a data set that the hub gives out "
            f"(offline, not found, or not public: {_line(error)})"
        ) from None
    except Exception as error:
        raise DataError(f"{name}: datasets cannot load this from the hub ({_line(error)})") from None
    urls = " ".join(rows.info.download_checksums or {})
    commit = re.search(r"@([0-9a-f]{40})/", urls)
    found = commit.group(1) if commit else revision
    return rows, {"source": name, "config": config_name, "revision": found, "fingerprint": rows._fingerprint}


def _load_files(files: list[Path], split: str) -> "Dataset":
    """Rows of files of one kind.

    What the fast JSON loader refuses (fields that change their type or appear late, lone surrogates) is
    read once more with every column as JSON, if the file itself is sound. So is text that it takes for
    dates.
    """
    kind = kind_of(files[0])
    if kind == "json":
        try:
            rows = _load("json", files, split)
            sound = not any("timestamp" in str(feature) for feature in rows.features.values())
        except Exception:
            sound = False
        if sound:
            return rows
        names = list(dict.fromkeys(name for path in files for name in json_columns(path)))
        options: dict[str, Any] = {"features": _json_features(names)}
    elif kind == "csv":
        options = _csv_options(files)
    else:
        options = {}
    try:
        return _load(kind, files, split, **options)
    except Exception as error:
        place = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(f"{place}: datasets cannot read this as {kind} ({_line(cause)})") from None


def _load(kind: str | None, files: list[Path], split: str, **options: Any) -> "Dataset":
    import datasets

    # datasets takes file names for patterns
    names = {base_split(split): [glob.escape(str(path.resolve())) for path in files]}
    with _quiet():
        return datasets.load_dataset(kind, data_files=names, split=split, **options)


def _csv_options(files: list[Path]) -> dict[str, Any]:
    """Every column is text: "1" stays "1", and "NA" or "null" is an answer, not a gap."""
    import datasets

    headers = {path: csv_header(path) for path in files}
    first = headers[files[0]]
    for path, names in headers.items():
        if names != first:
            raise DataError(f"{path}, line 1: columns {', '.join(names)} differ from {files[0].name}'s")
    features = datasets.Features({name: datasets.Value("string") for name in first})
    return {"features": features, "keep_default_na": False}


def _json_features(names: list[str]) -> Any:
    import datasets

    if not hasattr(datasets, "Json"):
        raise DataError(
            "columns whose values are of several types need a newer release of datasets; upgrade it"
        )
    return datasets.Features({name: datasets.Json() for name in names})


def _content_hash(rows: "Dataset") -> str:
    """A hash of the rows themselves: rows in memory have no file, and must resume in another process."""
    digest = hashlib.sha256()
    for block in rows.iter(batch_size=1000):
        digest.update(json.dumps(block, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from the loader; its errors become ours."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "fsspec")]
    levels = [logger.level for logger in loggers]
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
