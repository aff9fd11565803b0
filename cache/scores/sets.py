"""Score sets: statistics added to a finished cache, one Parquet file beside each of its shards.

`scores/NAME-00000.parquet` holds the rows of shard 0, joined to its pairs by `pair_id`. The base shards are
never touched. This module says what a set is; `score_writer` and `score_reader` write and read one.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import CacheError
from ..pairs import SIDES
from ..schema import FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..storage.files import Folder

SCORES_FOLDER = "scores"
SCORES_FORMAT = "tdpo-scores"

Shape = Literal["token", "entries", "completion", "pair"]
SHAPES: tuple[Shape, ...] = ("token", "entries", "completion", "pair")

# Type of the values in memory -> type of the stored elements. float16 values lie in float32 columns, as in
# the base shards: split and compressed, their empty bytes cost nothing, and every reader takes them.
STORED: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float32(),
    "int32": pa.int32(),
    "uint32": pa.uint32(),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,63}")
# What the pass over one model of a pair leaves until the other has run: never a name that a user may give.
PASS_SUFFIX = ".pass"


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """One statistic of a score set.

    Attributes:
        shape: what a value belongs to. `token`: a number for each completion token, [T] a side. `entries`:
            `width` numbers for each completion token, [T, width] a side. `completion`: `width` numbers for
            each completion, [width] a side. `pair`: `width` numbers for the pair, [width].
        dtype: `float32`, `float16`, `int32` or `uint32`.
        doc: what it is, with its unit.
        width: how many numbers; 1 for `token`, and None while the first value is still to come.

    """

    shape: Shape
    dtype: str = "float32"
    doc: str = ""
    width: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r} is none of {', '.join(SHAPES)}")
        if self.dtype not in STORED:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(STORED)}")
        if self.shape == "token" and self.width != 1:
            object.__setattr__(self, "width", 1)

    @property
    def per_token(self) -> bool:
        """Whether there are values for each completion token."""
        return self.shape in ("token", "entries")

    def files_columns(self, name: str) -> tuple[str, ...]:
        """Return the names of the Parquet columns that hold statistic `name`: one a side, or one."""
        return (name,) if self.shape == "pair" else tuple(f"{side}_{name}" for side in SIDES)


@dataclass(frozen=True, slots=True)
class ScoreShard:
    """A finished file of a score set: the shard it lies beside, its rows, size and checksum."""

    file: str
    index: int
    rows: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class ScoreSet:
    """One entry of the manifest's `scores`.

    Attributes:
        kind: what was added: `contrast`, `reference`, `sample` or `statistic`.
        identity: what was computed, provably; a request with another one is refused.
        provenance: how; recorded, never compared.
        columns: statistic -> its shape and type.
        shards: the finished files, ascending by index.
        complete: whether every shard of the base that has rows has its file.

    """

    kind: str
    identity: dict[str, Any]
    provenance: dict[str, Any]
    columns: dict[str, ScoreColumn]
    shards: list[ScoreShard] = field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> int:
        """Pairs in the finished files."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of the finished files."""
        return sum(shard.bytes for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it stands in the manifest."""
        return {
            "kind": self.kind,
            "complete": self.complete,
            "identity": self.identity,
            "provenance": self.provenance,
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "shards": [asdict(shard) for shard in self.shards],
        }

    def with_widths(self, widths: Mapping[str, int]) -> dict[str, ScoreColumn]:
        """Return the columns with the widths that were still to come filled in."""
        return {name: replace(column, width=widths[name]) for name, column in self.columns.items()}


def check_name(name: str) -> None:
    """Refuse a name that could not be a file's, or the first part of `NAME.COLUMN`.

    Raises:
        CacheError: says what a name may be.

    """
    if not _NAME.fullmatch(name):
        raise CacheError(f"--name {name}: a name is of letters, digits, - and _, such as second or prompts-1")


def file_name(name: str, index: int) -> str:
    """Name of a set's file beside shard `index`: `NAME-00000.parquet`."""
    return f"{name}-{index:05d}.parquet"


def is_score_file(file: str) -> bool:
    """Whether a file of this name in the folder of scores is a score set's, finished or not."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*-\d{5,}\.parquet(\.tmp)?", file) is not None


def scores_folder(folder: Folder) -> Folder:
    """Return the folder of a cache's score sets, which need not be there."""
    return folder.child(SCORES_FOLDER)


def clear_scores(folder: Folder) -> None:
    """Remove every score file of a cache that is to be replaced; others stay."""
    inside = scores_folder(folder)
    for name in filter(is_score_file, inside.names()):
        inside.remove(name)


def score_schema(name: str, columns: Mapping[str, ScoreColumn]) -> pa.Schema:
    """Return the Arrow schema of a score set's files. Nothing is nullable."""
    fields = [
        pa.field("pair_id", pa.string(), nullable=False, metadata={"doc": "of the pair in the base shard"}),
        pa.field("row", pa.int64(), nullable=False, metadata={"doc": "index of the pair in the source data"}),
    ]
    for statistic, column in columns.items():
        kind = pa.list_(pa.field("element", STORED[column.dtype], nullable=False))
        fields += [
            pa.field(each, kind, nullable=False, metadata={"doc": column.doc})
            for each in column.files_columns(statistic)
        ]
    described = {
        "tdpo.format": SCORES_FORMAT,
        "tdpo.format_version": str(FORMAT_VERSION),
        "tdpo.scores": name,
    }
    return pa.schema(fields, metadata=described)


def check_columns(columns: Mapping[str, ScoreColumn]) -> None:
    """Refuse columns that a file could not hold.

    Raises:
        ValueError: none, a name that is not plain, or two of one name.

    """
    if not columns:
        raise ValueError("a score set has at least one column")
    names = [each for name, column in columns.items() for each in column.files_columns(name)]
    for name in columns:
        if not _COLUMN.fullmatch(name):
            raise ValueError(f"column {name!r} is not a name of small letters, digits and _")
    taken = {"pair_id", "row"} & set(names)
    if taken or len(set(names)) < len(names):
        raise ValueError(
            f"two columns would be called {min(taken or {n for n in names if names.count(n) > 1})}"
        )


def parse_scores(document: Any) -> dict[str, ScoreSet]:
    """Check the manifest's `scores`.

    Raises:
        ValueError: what is wrong, for the message about the manifest.

    """
    if not isinstance(document, dict):
        raise ValueError('"scores" is not an object')
    for name in document:
        if not _NAME.fullmatch(name.removesuffix(PASS_SUFFIX)):
            raise ValueError(f"it names the score set {name!r}, which is not a plain name")
    return {name: _parse_set(name, entry) for name, entry in document.items()}


def _parse_set(name: str, entry: Any) -> ScoreSet:
    where = f'"scores.{name}'
    found = {
        key: _get(entry, key, kind, where)
        for key, kind in (
            ("kind", str),
            ("identity", dict),
            ("provenance", dict),
            ("columns", dict),
            ("shards", list),
            ("complete", bool),
        )
    }
    try:
        found["columns"] = {key: ScoreColumn(**column) for key, column in found["columns"].items()}
        check_columns(found["columns"])
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}.columns": {error}') from None
    for key, column in found["columns"].items():
        if column.width is not None and (type(column.width) is not int or column.width < 1):
            raise ValueError(f'{where}.columns.{key}" has the width {column.width!r}')
    found["shards"] = [_parse_shard(name, shard, where) for shard in found["shards"]]
    indices = [shard.index for shard in found["shards"]]
    if indices != sorted(set(indices)):
        raise ValueError(f'{where}.shards" are out of order or repeated')
    return ScoreSet(**found)


def _parse_shard(name: str, entry: Any, where: str) -> ScoreShard:
    numbers = {key: _get(entry, key, int, f"{where}.shards") for key in ("index", "rows", "bytes")}
    file, sha256 = (_get(entry, key, str, f"{where}.shards") for key in ("file", "sha256"))
    if any(value < 0 for value in numbers.values()) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f'{where}.shards" hold a negative count or a sha256 that is none')
    if file != file_name(name, numbers["index"]):
        raise ValueError(
            f'{where}.shards" name the file {file!r} instead of {file_name(name, numbers["index"])}'
        )
    return ScoreShard(file=file, sha256=sha256, **numbers)


def _get(entry: Any, key: str, kind: type, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:  # not isinstance: True is no count
        raise ValueError(f'{where}.{key}" is missing or not of the right type')
    return value


def values_of(array: Any, column: ScoreColumn) -> np.ndarray:
    """Return values as an array of the column's type and shape; a scalar of `completion` or `pair` as [1].

    Raises:
        ValueError: a number of dimensions that the shape does not have, or values that the type cannot hold.

    """
    values = np.asarray(array)
    if column.shape in ("completion", "pair") and values.ndim == 0:
        values = values[None]
    if values.ndim != (2 if column.shape == "entries" else 1):
        raise ValueError(f"of shape {column.shape} cannot be an array of shape {values.shape}")
    dtype = np.dtype(column.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(dtype, copy=False)
    if dtype.kind in "iu":
        if not np.array_equal(converted, values):
            raise ValueError(f"holds values that are not {column.dtype}")
    elif not np.isfinite(converted).all():
        raise ValueError("holds values that are not finite")
    return converted


def sets_in_use(scores: Mapping[str, ScoreSet]) -> Iterator[tuple[str, ScoreSet]]:
    """Go through the sets that users see: without what a pass over one of two models left."""
    return ((name, one) for name, one in scores.items() if not name.endswith(PASS_SUFFIX))
