"""Cache folders on this machine: every write is flushed to the disk and takes its name in one step."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

import pyarrow as pa

from .files import TEMPORARY, Folder, Written, checked_name, explained

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class LocalFolder(Folder):
    """A folder of this machine."""

    path: Path

    read_ahead: ClassVar[bool] = False

    @property
    def location(self) -> str:
        """The path as given."""
        return str(self.path)

    def locate(self, name: str) -> str:
        """Return the path of a file in the folder."""
        return str(self.path / name)

    def child(self, name: str) -> LocalFolder:
        """Name a folder inside this one, which need not exist."""
        return LocalFolder(self.path / checked_name(self, name))

    def exists(self) -> bool:
        """Whether the folder is there."""
        with explained("look at", self.path):
            return self.path.is_dir()

    def is_file(self) -> bool:
        """Whether the path leads to a file, or to anything else that is no folder."""
        with explained("look at", self.path):
            return self.path.exists() and not self.path.is_dir()

    def names(self) -> list[str]:
        """Names of everything in the folder, sorted; empty where there is no folder."""
        with explained("list", self.path):
            try:
                return sorted(os.listdir(self.path))
            except FileNotFoundError:
                return []

    def sizes(self) -> dict[str, int]:
        """Name -> size in bytes of every file in the folder."""
        with explained("list", self.path):
            try:
                with os.scandir(self.path) as entries:
                    return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            except FileNotFoundError:
                return {}

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, None where there is no such file."""
        with explained("look at", self.path / name):
            try:
                return (self.path / name).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes:
        """Return a file's whole content."""
        with explained("read", self.path / name):
            return (self.path / name).read_bytes()

    def source(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow to read from; the caller closes it."""
        with explained("read", self.path / name):
            try:
                return pa.OSFile(str(self.path / name))
            except OSError:
                (self.path / name).open("rb").close()  # the same refusal, in the system's words
                raise

    def create(self) -> list[Path]:
        """Make the folder and its missing parents; return those that were made, innermost first."""
        missing = []
        path = self.path
        with explained("create", self.path):
            while not path.exists():
                missing.append(path)
                path = path.parent
            self.path.mkdir(parents=True, exist_ok=True)
        return missing

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with explained("remove", self.path / name):
            (self.path / name).unlink(missing_ok=True)

    def replace(self, name: str, write: Callable[[IO[bytes]], None]) -> Written:
        """Write a file so that it is, at every instant, absent, the old one or the whole new one.

        The content goes to a temporary name, is flushed to the disk, and takes its name by a rename, which
        is flushed too. A failure removes the temporary file and leaves what was there before.

        Raises:
            CacheError: the file system refused.

        """
        final, temporary = self.path / name, self.path / (name + TEMPORARY)
        try:
            with explained("write", final):
                with temporary.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                written = Written.of(temporary)
                os.replace(temporary, final)
                self._flush_names()
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        return written

    def _flush_names(self) -> None:
        """Make renames survive a power cut; Windows keeps directories safe by itself and cannot open them."""
        if os.name == "nt":
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
