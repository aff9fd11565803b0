"""The demonstration's folder: where its parts lie, and whether a folder is one."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.file import CONFIG_FILE
from ..errors import ConfigError
from .size import Size

_MARKER = "demo.json"


class DemoFolder:
    """A folder that a demonstration may use, and what of it is finished.

    Args:
        path: the folder; made when it is not there.
        seed: of everything random.
        size: of the experiment.

    Raises:
        ConfigError: the folder holds something else, or a demonstration of another seed or size.
    """

    def __init__(self, path: str | os.PathLike[str], seed: int, size: Size):
        self.path = Path(path)
        self.model = self.path / "model"
        self.config = self.path / CONFIG_FILE
        self.train = self.path / "data" / "train.jsonl"
        self.heldout = self.path / "data" / "heldout.jsonl"
        self.prompts = self.path / "data" / "prompts.jsonl"
        self.results = self.path / "results.json"
        self.picture = self.path / "results.png"
        self._content: dict[str, Any] = {"tdpo_demo": 1, "seed": seed, "size": asdict(size), "finished": []}
        try:
            self._open(seed)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: {error.strerror or error}; choose a folder that can be written"
            ) from error

    def _open(self, seed: int) -> None:
        if self.path.is_dir() and any(self.path.iterdir()):
            found = self._read()
            if found is None:
                raise ConfigError(
                    f"{self.path}: is not empty and holds no demonstration; choose another folder"
                )
            if found.get("seed") != seed:
                raise ConfigError(
                    f"{self.path}: holds the demonstration of seed {found.get('seed')}; choose another "
                    f"folder, or go on with that one by --seed {found.get('seed')}"
                )
            if found.get("size") != self._content["size"]:
                raise ConfigError(
                    f"{self.path}: holds a demonstration of another size; choose another folder, or delete it"
                )
            self._content = found
            return
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; choose a folder")
        self.train.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("tdpo_demo") == 1 else None

    def _write(self) -> None:
        whole = self.path / f"{_MARKER}.tmp"
        whole.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        whole.replace(self.path / _MARKER)

    def is_finished(self, part: str) -> bool:
        """Whether ``part`` was finished, now or by an earlier call."""
        return part in self._content["finished"]

    def finish(self, part: str) -> None:
        """Record that ``part`` lies in the folder as a whole."""
        self._content["finished"].append(part)
        self._write()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_jsonl` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
