"""Cache folders in an object store, or anywhere else that fsspec reaches: `s3://bucket/cache`.

Only the URL is kept: the file system is asked for again at each operation (fsspec keeps it, one a process).
So a folder, and a reader that holds one, can be pickled, shared by threads and carried into a forked worker.
"""

from __future__ import annotations

import errno
import io
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

import fsspec
import pyarrow as pa

from ..errors import CacheError
from .files import TEMPORARY, Folder, Written, checked_name, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Stores without folders of their own, in which an upload replaces the whole object or nothing. Making a
# folder there would at best do nothing and at worst make a bucket that was only misspelt.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "hf", "memory"})

_PACKAGES = {"s3": "'tdpo[s3]'", "s3a": "'tdpo[s3]'"}

_KEPT = "run the same command again, finished shards are kept"


@dataclass(frozen=True, slots=True)
class RemoteFolder(Folder):
    """A folder at a URL. The store's own client tries again where a request fails, a few times."""

    url: str

    read_ahead: ClassVar[bool] = True

    @classmethod
    def of_url(cls, path: str) -> RemoteFolder:
        """Name a folder by its URL.

        Raises:
            CacheError: the kind of URL is unknown, or its package is not installed.

        """
        protocol = path.partition("://")[0]
        if "::" in path:
            raise CacheError(f"{path}: a URL inside another is no folder; give the URL of the folder itself")
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            what = f"pip install {package}" if package else _first_line(error)
            raise CacheError(f"{path}: {protocol}:// needs a package that is not installed: {what}") from None
        except ValueError:
            raise CacheError(
                f"{path}: {protocol}:// is no kind of storage that fsspec knows; give a folder, or a URL "
                "such as s3://bucket/folder"
            ) from None
        return cls(path.rstrip("/"))

    @property
    def location(self) -> str:
        """The URL as given."""
        return self.url

    def locate(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        return f"{self.url}/{name}"

    def child(self, name: str) -> RemoteFolder:
        """Name a folder inside this one, which need not exist."""
        return RemoteFolder(self.locate(checked_name(self, name)))

    def exists(self) -> bool:
        """Whether anything is in the folder."""
        return bool(self._entries())

    def is_file(self) -> bool:
        """Whether the URL is that of a file."""
        with self._reaching("look at") as (store, path):
            return bool(store.isfile(path))

    def names(self) -> list[str]:
        """Names of everything in the folder, sorted; empty where there is no folder."""
        return sorted(self._entries())

    def sizes(self) -> dict[str, int]:
        """Name -> size in bytes of every file in the folder."""
        return {name: size for name, size in self._entries().items() if size is not None}

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, None where there is no such file."""
        with self._reaching("look at", name) as (store, path):
            try:
                info = store.info(path)
            except FileNotFoundError:
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """Return a file's whole content."""
        with self._reaching("read", name) as (store, path):
            return cast("bytes", store.cat_file(path))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return a file's bytes from `start` up to `stop`."""
        with self._reaching("read", name) as (store, path):
            return cast("bytes", store.cat_file(path, start=start, end=stop))

    def source(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow to read from; each read is one request. The caller closes it."""
        size = self.size(name)
        if size is None:
            raise CacheError(f"cannot read {self.locate(name)}: there is no such file; check the URL")
        return pa.PythonFile(_RangeFile(self, name, size), mode="r")

    def create(self) -> list[Path]:
        """Make the folder where its storage has such things."""
        with self._reaching("create") as (store, path):
            if not _is_object_store(self.url):
                store.makedirs(path, exist_ok=True)
        return []

    def create_file(self, name: str, content: bytes) -> bool:
        """Write a file that is not there; return False, having written nothing, where it is.

        No two callers are told True, as far as the store can promise that: S3, Google and Azure do.
        """
        with self._reaching("write", name) as (store, path):
            try:
                store.pipe_file(path, content, mode="create")
            except OSError as error:
                if isinstance(error, FileExistsError) or store.exists(path):
                    return False
                if error.errno != errno.ENOSYS:
                    raise
                store.pipe_file(path, content)  # an S3 server that cannot promise it
        return True

    def overwrite_file(self, name: str, content: bytes) -> None:
        """Write a small file, in one request where the store has such."""
        with self._reaching("write", name) as (store, path):
            store.pipe_file(path, content)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._reaching("remove", name) as (store, path):
            try:
                store.rm_file(path)
            except FileNotFoundError:
                return

    def replace(self, name: str, write: Callable[[IO[bytes]], None]) -> Written:
        """Write a file so that it is, at every instant, absent, the old one or the whole new one.

        It is made in a temporary folder of this machine first, so that nothing half made is ever sent and a
        request that failed can be sent again.

        Raises:
            CacheError: this machine or the store refused.

        """
        with tempfile.TemporaryDirectory(prefix="tdpo-") as folder:
            made = Path(folder) / "upload"
            with explained("write", made):
                with made.open("wb") as file:
                    write(file)
                written = Written.of(made)
            with self._reaching("write", name) as (store, path):
                if _is_object_store(self.url):
                    store.put_file(str(made), path)
                else:
                    store.put_file(str(made), path + TEMPORARY)
                    store.mv(path + TEMPORARY, path)
        return written

    def _entries(self) -> dict[str, int | None]:
        """Name -> size, None for a folder, of everything in the folder."""
        with self._reaching("list") as (store, path):
            try:
                found = store.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        here = path.strip("/")
        places = {entry["name"].strip("/"): entry for entry in found}
        return {
            place.rpartition("/")[2]: int(entry["size"]) if entry["type"] == "file" else None
            for place, entry in places.items()
            if place != here
        }

    @contextmanager
    def _reaching(self, action: str, name: str | None = None) -> Iterator[tuple[Any, str]]:
        """Give the store and the path in it; what fails inside the block becomes a `CacheError`."""
        place = self.url if name is None else self.locate(name)
        try:
            store, path = fsspec.url_to_fs(place)
            store.invalidate_cache()  # other processes write here too
            yield store, path
        except Exception as error:  # every store's client has exceptions of its own
            what, advice = _explain(error, self.url)
            raise CacheError(f"cannot {action} {place}: {what}; {advice}") from error


class _RangeFile(io.RawIOBase):
    """A remote file as pyarrow reads one: at places, without a buffer."""

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self._folder, self._name, self._size = folder, name, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        content = self._folder.read_range(self._name, self._at, stop) if stop > self._at else b""
        self._at += len(content)
        return content


def _is_object_store(url: str) -> bool:
    return url.partition("://")[0] in _OBJECT_STORES


def _explain(error: Exception, url: str) -> tuple[str, str]:
    """Return what went wrong and what to do about it.

    Clients are told apart by the names of their exceptions, so that none of them needs to be installed.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    names = " ".join(type(link).__name__ for link in chain)
    s3 = url.startswith("s3")
    if "Credential" in names:
        return _first_line(error), (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            if s3
            else "log in to the store, or set its credentials"
        )
    if isinstance(error, PermissionError):
        return _first_line(error), "check the credentials, and that they may read and write there"
    if isinstance(error, FileNotFoundError):
        bucket = "; a bucket must exist before anything is put into it" if _is_object_store(url) else ""
        return _first_line(error), f"check the URL{bucket}"
    if isinstance(error, TimeoutError | ConnectionError) or any(
        word in names for word in ("Connect", "Timeout", "HTTPClientError", "gaierror")
    ):
        endpoint = " and AWS_ENDPOINT_URL" if s3 else ""
        return _first_line(error), f"check the network{endpoint}, and {_KEPT}"
    return _first_line(error), f"check the URL and the store, and {_KEPT}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror).splitlines()[0]
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
