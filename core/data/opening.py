"""Named data, opened through datasets: local files, folders it saved, names on the hub.

Each function gives the rows, a ``Dataset`` or where asked for an ``IterableDataset``, and what proves which
data they are; what the loader has to say becomes one line.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError
from .columns import COLUMNS
from .files import (
    base_split,
    check_file,
    count_lines,
    csv_header,
    describe_file,
    find_files,
    json_columns,
    json_rows,
    kind_of,
)
from .quiet import line, quiet
from .text import well_formed

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


_STREAMED_ROWS = 1000


class Opened(NamedTuple):
    """Rows as they lie, and what proves which they are."""

    rows: "Dataset | IterableDataset | Iterator[dict[str, Any]]"
    identity: dict[str, Any]


def open_named(
    names: Sequence[str],
    split: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    columns: Sequence[str] = COLUMNS,
    streaming: bool = False,
) -> Opened:
    """Open what ``names`` mean: files, folders and patterns, or one saved folder or one hub name.

    Args:
        names: paths or a hub name.
        split: which split.
        config_name: the hub data set's configuration.
        revision: the hub data set's branch, tag or commit.
        columns: the data's columns that will be used.
        streaming: read the rows one after the other, with no copy of them on the disk.

    Raises:
        DataError: one line that says what cannot be read, where, and what to do.
    """
    if not names:
        raise DataError("no data is named; give a file, a folder or a hub name")
    if streaming and "[" in split:
        raise DataError(f"--split {split}: a stream has no slices; use --split {base_split(split)} --limit N")
    if len(names) == 1 and _is_saved(Path(names[0]).expanduser()):
        return _open_saved(names[0], Path(names[0]).expanduser(), split)
    files: list[Path] = []
    for name in names:
        found = find_files(name, split)
        if found is None:
            if len(names) > 1:
                raise DataError(f"{name}: no such file; several names must all be local files")
            return _open_hub(name, split, config_name, revision, streaming)
        files += found
    _check_together(files)
    for path in files:
        check_file(path)
    rows = _load_files(files, split, columns, streaming)
    root = Path(os.path.commonpath([path.absolute().parent for path in files]))
    described = [describe_file(path.absolute(), root) for path in files]
    return Opened(rows, {"source": names[0] if len(names) == 1 else list(names), "files": described})


def _check_together(files: list[Path]) -> None:
    first = files[0]
    seen: set[Path] = set()
    for path in files:
        if kind_of(path) != kind_of(first):
            raise DataError(
                f"files of several kinds ({first.name} and {path.name}) cannot be read together; "
                "give files of one kind"
            )
        if path.resolve() in seen:
            raise DataError(f"{path}: given twice; name every file once")
        seen.add(path.resolve())


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open_saved(name: str, folder: Path, split: str) -> Opened:
    import datasets

    try:
        with quiet():
            loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{name}: not a folder that datasets can load from disk ({line(error)}); "
            "write it again with save_to_disk"
        ) from None
    files = [describe_file(path, folder) for path in sorted(folder.rglob("*.arrow"))]
    if isinstance(loaded, datasets.DatasetDict):
        loaded = of_dict(loaded, split, name)
        files = [each for each in files if each["name"].startswith(f"{split}/")]
    return Opened(loaded, {"source": name, "files": files})


def of_dict(loaded: Any, split: str, where: str) -> Any:
    """The split of a ``DatasetDict``. Raises DataError where it has no such split."""
    if split not in loaded:
        raise DataError(f"{where}: unknown split {split!r}; it has {', '.join(map(repr, loaded))}")
    return loaded[split]


def _open_hub(
    name: str, split: str, config_name: str | None, revision: str | None, streaming: bool
) -> Opened:
    import datasets
    from huggingface_hub import HfApi

    commit = None
    try:
        with quiet():
            if streaming:
                # Which one it is cannot be told from the rows afterwards.
                commit = HfApi().dataset_info(name, revision=revision).sha
            rows = datasets.load_dataset(
                name, config_name, split=split, revision=commit or revision, streaming=streaming
            )
    except (ConnectionError, OSError) as error:  # datasets' "not found" is a FileNotFoundError
        raise DataError(
            f"{name}: neither a local path nor a data set that the hub gives out "
            f"(offline, not found, or not public: {line(error)})"
        ) from None
    except Exception as error:
        raise DataError(f"{name}: datasets cannot load this from the hub ({line(error)})") from None
    return Opened(rows, {"source": name, "config": config_name, "revision": commit or _commit_of(rows)})


def _commit_of(rows: "Dataset") -> str | None:
    """The hub's commit, by which the loader names the folder of its copy; that stays when it is offline."""
    found = re.search(r"[/\\]([0-9a-f]{40})[/\\]", " ".join(file["filename"] for file in rows.cache_files))
    return found.group(1) if found else None


def _load_files(
    files: list[Path], split: str, columns: Sequence[str], streaming: bool
) -> "Dataset | IterableDataset | Iterator[dict[str, Any]]":
    kind = kind_of(files[0])
    if kind == "json":
        if streaming:
            return (row for path in files for row in json_rows(path))
        plain = _load_plain_json(files, split, columns)
        return _load_json(files, split) if plain is None else plain
    options: dict[str, Any]
    if kind == "csv":
        options = _csv_options(files)
    else:
        options = _parquet_options(files, columns)
        if streaming:
            options["batch_size"] = _STREAMED_ROWS
    try:
        return _load(kind, files, split, streaming, **options)
    except Exception as error:
        place = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(
            f"{place}: datasets cannot read this as {kind} ({line(cause)}); "
            "check that it is whole, or write it again"
        ) from None


def _load_plain_json(files: list[Path], split: str, columns: Sequence[str]) -> "Dataset | None":
    """Rows as the fast JSON loader reads them, or None where that would refuse or change them.

    It refuses fields that change their type or appear late, and lone surrogates; it takes some text for
    dates; and it gives the objects of a column one order of keys and one type for each, which a chat
    template shows in its tools. Such files are read once more with every column as JSON.
    """
    import datasets

    try:
        rows = _load("json", files, split)
    except Exception:
        return None
    assert isinstance(rows, datasets.Dataset)
    if any("timestamp" in str(feature) for feature in rows.features.values()):
        return None
    # A file that it cannot parse by lines it reads as one object, of columns instead of rows.
    if (expected := count_lines(files)) is not None and len(rows) != expected and "[" not in split:
        return None
    return rows if all(_is_plain(rows.features[name]) for name in columns if name in rows.features) else None


def _is_plain(feature: Any) -> bool:
    """Whether a column holds single values, JSON or flat messages, which come out as they went in."""
    inner = getattr(feature, "feature", feature)  # of a list
    if isinstance(inner, dict):
        return inner is not feature and all(_is_text(each) for each in inner.values())
    return type(inner).__name__ in ("Value", "Json")


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string", "null")


def _load(
    kind: str | None, files: list[Path], split: str, streaming: bool = False, **options: Any
) -> "Dataset | IterableDataset":
    import datasets

    # datasets takes file names for patterns
    names = {base_split(split): [glob.escape(str(path.resolve())) for path in files]}
    with quiet():
        return datasets.load_dataset(kind, data_files=names, split=split, streaming=streaming, **options)


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


def _parquet_options(files: list[Path], columns: Sequence[str]) -> dict[str, Any]:
    """Several files need only agree on the columns that are used."""
    if len(files) == 1:
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = {path: pq.read_schema(path).names for path in files}
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{files[0]} and {len(files) - 1} more: not all are whole Parquet files ({line(error)}); "
            "write them again"
        ) from None
    first = [name for name in found[files[0]] if name in columns]
    for path, names in found.items():
        if set(first) != set(names) & set(columns):
            used = ", ".join(name for name in names if name in columns) or "none of tdpo's"
            raise DataError(
                f"{path}: its columns ({used}) differ from {files[0].name}'s ({', '.join(first)})"
            )
    return {"columns": first} if first else {}


def _load_json(files: list[Path], split: str) -> "Dataset":
    """Rows with every column as JSON: any values, as they are."""
    import datasets

    if not hasattr(datasets, "Json"):
        raise DataError(
            "columns whose values are of several types need a newer release of datasets; upgrade it"
        )
    names = list(dict.fromkeys(name for path in files for name in json_columns(path)))
    # The loader knows its copy by these arguments, so that other content must be another argument.
    proof = [describe_file(path, path.parent)["sha256"] for path in files]
    with quiet():
        rows = datasets.Dataset.from_generator(
            _completed,
            features=datasets.Features({name: datasets.Json() for name in names}),
            gen_kwargs={"paths": tuple(map(str, files)), "names": tuple(names), "proof": tuple(proof)},
        )
    if "[" not in split:
        return rows
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({base_split(split): len(rows)})
    except (ValueError, AssertionError) as error:
        raise DataError(f"--split {split}: not a part of {len(rows)} rows ({line(error)})") from None
    return rows.select(itertools.chain.from_iterable(range(part.from_, part.to) for part in parts))


def _completed(
    paths: tuple[str, ...], names: tuple[str, ...], proof: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for path in paths:
        for row in json_rows(Path(path)):
            yield {name: _well_formed(row.get(name)) for name in names}


def _well_formed(value: Any) -> Any:
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_well_formed(each) for each in value]
    return well_formed(value) if isinstance(value, str) else value
