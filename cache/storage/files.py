"""Every operation on storage that the cache makes: one folder, plain file names inside it.

The writer, the reader and the checks reach files only through `Folder`. `local.py` has the folders of this
machine, `remote.py` those in an object store or anywhere else that fsspec reaches.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEMPORARY = ".tmp"

_CHUNK = 8 << 20

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


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a folder's name is the URL of remote storage."""
    text = os.fspath(path)
    return "://" in text and not text.startswith("file://")


def write_all(file: IO[bytes], content: bytes) -> None:
    """Write content that is already in memory."""
    file.write(content)


def copy_checked(source: Folder, name: str, expected: Written, file: IO[bytes]) -> None:
    """Write a folder's file into another, a few megabytes at a time.

    Raises:
        CacheError: it cannot be read, or was not what is expected.

    """
    digest, size = hashlib.sha256(), 0
    with source.source(name) as stream:
        while True:
            with explained("read", source.locate(name)):
                chunk = stream.read(_CHUNK)
            if not chunk:
                break
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if Written(size, digest.hexdigest()) != expected:
        raise CacheError(
            f"{source.locate(name)} is damaged, its size or sha256 is not the ledger's: restore it, or "
            "remove it and run the same build command again"
        )


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file: its size in bytes and the SHA-256 of its content in hexadecimal digits."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Written:
        """Measure a file of this machine."""
        with path.open("rb") as file:
            return cls(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


class Folder(ABC):
    """A folder and the files directly inside it. Holds nothing but its name: copies and pickles are alike.

    Every method raises `CacheError`, one line that says what to do, where the storage refuses.
    """

    read_ahead: ClassVar[bool]
    """Whether reading many bytes at once is far cheaper than reading them a few at a time."""

    @staticmethod
    def at(path: str | os.PathLike[str]) -> Folder:
        """Name a folder, which need not exist: a local path, `file://` or any fsspec URL.

        Raises:
            CacheError: a URL of a kind that is unknown, or whose package is not installed.

        """
        text = os.fspath(path)
        if is_url(text):
            from .remote import RemoteFolder

            return RemoteFolder.of_url(text)
        from .local import LocalFolder

        return LocalFolder(Path(text.removeprefix("file://")))

    @property
    @abstractmethod
    def location(self) -> str:
        """The folder's path or URL."""

    @abstractmethod
    def locate(self, name: str) -> str:
        """Return the path or URL of a file in the folder."""

    @abstractmethod
    def child(self, name: str) -> Folder:
        """Name a folder inside this one, which need not exist; `name` is a plain name."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the folder is there; in an object store, whether anything is in it."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether what the folder's name leads to is a file."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of everything in the folder, sorted; empty where there is no folder."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Name -> size in bytes of every file in the folder, listed in one go."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes, None where there is no such file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's whole content."""

    @abstractmethod
    def source(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow to read from; the caller closes it."""

    @abstractmethod
    def create(self) -> list[Path]:
        """Make the folder and its missing parents; return those made on this machine, innermost first."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def replace(self, name: str, write: Callable[[IO[bytes]], None]) -> Written:
        """Write a file so that it is, at every instant, absent, the old one or the whole new one."""

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's content in hexadecimal digits; holds a few megabytes at a time."""
        digest = hashlib.sha256()
        with self.source(name) as source, explained("read", self.locate(name)):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file whose pages are checked as they are read; the caller closes it.

        Raises:
            CacheError: the storage refuses.
            pa.ArrowException, OSError: it is no Parquet file.

        """
        source = self.source(name)
        try:
            # A row group's columns lie side by side: read ahead, they come in one request.
            return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=self.read_ahead)
        except BaseException:
            source.close()
            raise


def checked_name(folder: Folder, name: str) -> str:
    """Return a name that stays inside its folder.

    Raises:
        CacheError: it does not.

    """
    if not is_plain_name(name):
        raise CacheError(f"{name!r} is not a plain name of something inside {folder.location}")
    return name
