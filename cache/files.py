"""Every operation on the file system that the cache makes: one folder, plain file names inside it.

The writer and the reader reach files only through `Folder`, so a folder that is not local (an fsspec
URL) needs another class with these methods and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pyarrow as pa

from .errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEMPORARY = ".tmp"

_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again; finished shards are kept",
    errno.EDQUOT: "free some space and run the same command again; finished shards are kept",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or use smaller shards, and run it again",
    errno.EACCES: "choose a folder that you may read and write",
    errno.EPERM: "choose a folder that you may read and write",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOENT: "check the path, and that its disk is still mounted",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
}


@contextmanager
def explained(action: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError inside the block into a `CacheError`: what failed, where, and what to do."""
    try:
        yield
    except OSError as error:
        what = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        advice = _ADVICE.get(error.errno or 0, "check the disk and run the same command again")
        raise CacheError(f"cannot {action} {path}: {what}; {advice}") from error


def is_plain_name(name: str) -> bool:
    """Whether a name stays inside its folder on every platform: no separators, drives, dots or controls."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)) and ".." not in name


def write_all(file: IO[bytes], content: bytes) -> None:
    """Write content that is already in memory."""
    file.write(content)


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file: its size in bytes and the SHA-256 of its content in hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder and the files directly inside it."""

    path: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Folder:
        """Name a folder, which need not exist; refuse URLs.

        Raises:
            CacheError: the path is the URL of remote storage.

        """
        text = os.fspath(path)
        if "://" in text:
            raise CacheError(f"{text} is a URL, and caches are local folders so far: copy it to a local path")
        return cls(Path(text))

    def exists(self) -> bool:
        """Whether the folder is there."""
        with explained("look at", self.path):
            return self.path.is_dir()

    def names(self) -> list[str]:
        """Names of everything in the folder, sorted; empty where there is no folder."""
        with explained("list", self.path):
            try:
                return sorted(os.listdir(self.path))
            except FileNotFoundError:
                return []

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
            return pa.OSFile(str(self.path / name))

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
                with temporary.open("rb") as file:
                    written = Written(
                        os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
                    )
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
