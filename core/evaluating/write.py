"""An evaluation's files: ``eval.json`` for what it found, ``pairs.parquet`` for the pairs it found it on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..config.eval import EvalConfig
from ..errors import ConfigError
from .request import Subject
from .samples_file import SAMPLES_FILE
from .summary import Evaluated
from .table import column_name

JSON_FILE = "eval.json"
PAIRS_FILE = "pairs.parquet"


def check_out(config: EvalConfig, subjects: Sequence[Subject]) -> Path | None:
    """The folder to write into: ``--out``, or ``eval`` in the folder of a single run; None for neither.

    Raises:
        ConfigError: something else has its name, or it cannot be written.
    """
    run = subjects[0].run if len(subjects) == 1 else None
    if config.out is None and run is None:
        return None
    out = Path(config.out) if config.out is not None else run.path / "eval"  # type: ignore[union-attr]
    if not out.exists() or (out.is_dir() and os.access(out, os.W_OK)):
        return out
    what = "cannot be written" if out.is_dir() else "is a file"
    raise ConfigError(f"--out {out}: {what}; choose another folder")


def write_evaluation(
    out: Path, document: dict[str, Any], evaluated: Sequence[Evaluated], samples: pa.Table | None = None
) -> None:
    """Write the files, in place of those of an earlier evaluation; ``samples.parquet`` where there are any.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pairs_table(evaluated), out / f"{PAIRS_FILE}.tmp", compression="zstd")
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        (out / f"{JSON_FILE}.tmp").write_text(text + "\n", encoding="utf-8")
        written = [PAIRS_FILE, JSON_FILE]
        if samples is not None:
            pq.write_table(samples, out / f"{SAMPLES_FILE}.tmp", compression="zstd")
            written.insert(0, SAMPLES_FILE)
        for name in written:
            (out / f"{name}.tmp").replace(out / name)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def pairs_table(evaluated: Sequence[Evaluated]) -> pa.Table:
    """A row for each pair of each policy on each cache; ``/`` in the name of a figure is ``_`` here.

    A figure that one policy has and another has not is null there.
    """
    return pa.concat_tables([_rows(one) for one in evaluated], promote_options="permissive")


def _rows(one: Evaluated) -> pa.Table:
    table = one.table
    columns: dict[str, Any] = {
        "run": pa.array([one.subject.name] * len(table), pa.string()),
        "cache": pa.array([one.cache] * len(table), pa.string()),
        "pair_id": pa.array(table.ids.astype(str)),
    }
    for name, values in {**table.columns, **table.figures}.items():
        columns[column_name(name)] = _array(values)
    return pa.table(columns)


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, from_pandas=True)
    return pa.array(values.tolist()) if values.dtype.kind in "OU" else pa.array(values)
