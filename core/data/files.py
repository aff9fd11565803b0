"""Local data files: which ones a path means, whether they are what their names say, their hashes."""

import codecs
import csv
import difflib
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The loader of ``datasets`` that reads each extension (JSON and CSV may end in ``.gz``)."""

SPLIT_NAMES = ("train", "test", "validation", "valid", "dev", "eval")

# How the hub names the files of a split, whatever it is called.
_HUB_NAME = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}[.-].*")


def kind_of(path: Path) -> str | None:
    """The loader's name for ``path`` (``json``, ``csv``, ``parquet``), or None where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return KINDS.get(suffixes[-1]) if suffixes else None


def find_files(given: str, split: str) -> list[Path] | None:
    """The files that ``given`` (a file, a folder, a glob) means; None where it can only be a hub name.

    In a folder whose file names tell splits apart, only those of ``split`` are taken.

    Raises:
        DataError: no such file, an extension that is not read, an unknown split.
    """
    if not given.strip():
        raise DataError("the name of the data is empty; give a file, a folder or a hub name")
    path = Path(given).expanduser()
    if path.is_dir():
        return _files_of_folder(path, split)
    if path.exists():
        if kind_of(path) is None:
            raise DataError(f"{given}: unknown extension {path.suffix!r}; tdpo reads {_known()}")
        return [_only_train(path, split, "is one file")]
    if glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(
                f"{given}: no file matches this pattern; check the folder and the quotes around it"
            )
        for each in found:
            if kind_of(each) is None:
                raise DataError(f"{each}: unknown extension {each.suffix!r}; tdpo reads {_known()}")
        _only_train(path, split, "is a pattern")
        return found
    if re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", given) and kind_of(path) is None:
        return None
    raise DataError(
        f"{given}: no such file or folder{_nearest(path)}; give a path or a hub name such as owner/name"
    )


def _known() -> str:
    return ", ".join(KINDS) + " (JSON and CSV also with .gz)"


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _only_train(path: Path, split: str, what: str) -> Path:
    if base_split(split) != "train":
        raise DataError(
            f"{path}: unknown split {split!r}: this {what}, all of whose rows are the split 'train'"
        )
    return path


def base_split(split: str) -> str:
    """``train`` of ``train[:1000]``."""
    return split.split("[", 1)[0]


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    hidden = re.compile(r"(^|/)[._]")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and kind_of(path) and not hidden.search(path.relative_to(folder).as_posix())
    ]
    if not files:
        raise DataError(f"{folder}: no data file in this folder; tdpo reads {_known()}")
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if set(splits) == {""}:
        splits = {"train": files}
    if base_split(split) not in splits:
        names = ", ".join(repr(name) for name in sorted(splits) if name)
        raise DataError(f"{folder}: unknown split {split!r}; its files' names tell the splits {names}")
    chosen = splits[base_split(split)]
    kinds = {kind_of(path) for path in chosen}
    if len(kinds) > 1:
        names = ", ".join(path.name for path in chosen[:4])
        raise DataError(
            f"{folder}: files of several kinds ({names}); give one kind, for example {folder}/*.jsonl"
        )
    return chosen


def _split_of(path: Path) -> str:
    """The split that a file's name tells, or ``""``."""
    if named := _HUB_NAME.fullmatch(path.name):
        return named["split"]
    words = re.split(r"[^A-Za-z]+", path.as_posix().lower())
    return next((word for word in words if word in SPLIT_NAMES), "")


def describe_file(path: Path, root: Path) -> dict[str, Any]:
    """Name below ``root``, size and SHA-256 of one file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": digest}


def check_file(path: Path) -> None:
    """Look at what a file holds; text is read wholly, Parquet at both ends.

    Raises:
        DataError: unreadable, empty, or not of the kind that its name says.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(max(0, path.stat().st_size - 4))
            end = stream.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not start:
        raise DataError(f"{path}: the file is empty; give one with at least one row")
    if kind_of(path) == "parquet":
        if start != b"PAR1" or end != b"PAR1":
            raise DataError(f"{path}: not a Parquet file, or one cut short (its magic bytes are missing)")
        return
    if path.suffix.lower() == ".gz" and start[:2] != b"\x1f\x8b":
        raise DataError(f"{path}: not a gzip file, though its name says so; rename it or compress it")
    if start[:2] == b"\x1f\x8b" and path.suffix.lower() != ".gz":
        raise DataError(f"{path}: a gzip file; give its name the ending .gz")
    try:
        _check_text(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged gzip file ({error}); fetch or compress it again") from None


def _check_text(path: Path) -> None:
    """Read the whole file once: the fast loaders take bytes that are no UTF-8 and fail much later."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, blank = 1, True
    with open_bytes(path) as stream:
        while True:
            block = stream.read(1 << 20)
            if lines == 1 and blank and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: text in UTF-16; save it as UTF-8")
            if b"\x00" in block:
                raise DataError(
                    f"{path}: binary data, not the text its name promises; check what the file is"
                )
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                lines += error.object[: error.start].count(b"\n")
                raise DataError(f"{path}, line {lines}: not UTF-8 text; save the file as UTF-8") from None
            if not block:
                break
            lines += block.count(b"\n")
            blank = blank and not block.strip()
    if blank:
        raise DataError(f"{path}: the file is empty but for white space; give one with at least one row")


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where its name ends in ``.gz``."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def csv_header(path: Path) -> list[str]:
    """The column names in a CSV file's first line.

    Raises:
        DataError: a blank or repeated name, no rows below, no CSV at all.
    """
    with open_bytes(path) as stream:
        try:
            records = csv.reader(line.decode("utf-8-sig") for line in stream)
            names = next(records, [])
            empty = not any(records)
        except csv.Error as error:
            raise DataError(f"{path}, line 1: not CSV ({error})") from None
    if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise DataError(f"{path}, line 1: must name every column once, for example prompt,chosen,rejected")
    if empty:
        raise DataError(f"{path}: no rows below the line of column names; give at least one")
    return names


def count_lines(files: Iterable[Path]) -> int | None:
    """Lines of JSON Lines files that are not blank; None where a file is a JSON list."""
    total = 0
    for path in files:
        with open_bytes(path) as stream:
            if _first_byte(stream) == b"[":
                return None
            total += sum(1 for line in stream if line.strip())
    return total


def json_columns(path: Path) -> list[str]:
    """Every key of every row of a JSON file, in order of appearance.

    Raises:
        DataError: as :func:`json_rows`, and where there is no row.
    """
    columns: dict[str, None] = {}
    for row in json_rows(path):
        columns.update(dict.fromkeys(row))
    if not columns:
        raise DataError(f"{path}: no rows; give at least one")
    return list(columns)


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, one after the other, or of a JSON list, which is read whole.

    Uses Python's own parser, which keeps every value as it is and says where a fault is.

    Raises:
        DataError: with the number of the first line that is not a JSON object.
    """
    with open_bytes(path) as stream:
        if _first_byte(stream) == b"[":
            rows: Iterator[tuple[int, Any]] = enumerate(_load_list(path, stream), 1)
            place = "item"
        else:
            rows, place = _load_lines(path, stream), "line"
        for number, row in rows:
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, {place} {number}: {type(row).__name__}, not an object; "
                    'every row must look like {"prompt": ..., "chosen": ..., "rejected": ...}'
                )
            yield row


def _first_byte(stream: IO[bytes]) -> bytes:
    head = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    stream.seek(0)
    return head[:1]


def _load_list(path: Path, stream: IO[bytes]) -> list[Any]:
    try:
        rows: list[Any] = json.loads(stream.read().decode("utf-8-sig"))
        return rows
    except ValueError as error:
        raise DataError(
            f"{path}, line {getattr(error, 'lineno', 1)}: not valid JSON ({_short(error)})"
        ) from None


def _load_lines(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode("utf-8-sig")
            if text.strip():
                yield number, json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = "; each line must be one whole JSON object" if number == 1 else ""
            raise DataError(f"{path}, line {number}: not valid JSON ({_short(error)}){hint}") from None


def _short(error: Exception) -> str:
    return str(getattr(error, "msg", error)).split("\n", 1)[0]
