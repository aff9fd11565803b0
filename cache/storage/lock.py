"""One builder at a time: a lock on a cache folder that does not outlive the process holding it."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CacheError
from .files import explained
from .lease import LEASE_NAME, LEASE_SECONDS, Lease
from .local import LocalFolder
from .remote import RemoteFolder

if TYPE_CHECKING:
    from .files import Folder

LOCK_NAME = LEASE_NAME


class Lock(Protocol):
    """The right to write into a cache folder."""

    def check(self) -> None:
        """Raise CacheError where the right was lost."""

    def release(self) -> None:
        """Give it back; doing it twice does nothing."""


def lock_folder(folder: Folder, lease_seconds: float = LEASE_SECONDS) -> Lock:
    """Take the right to write into a folder.

    Args:
        folder: a folder that is there.
        lease_seconds: how often a remote folder's lease is changed; see `Lease`.

    Raises:
        CacheError: another process builds this cache now, or the folder cannot be written to.

    """
    if isinstance(folder, RemoteFolder):
        return Lease(folder, lease_seconds)
    if isinstance(folder, LocalFolder):
        return LocalLock(folder)
    raise TypeError(f"no lock for {type(folder).__name__}")


class LocalLock:
    """The right to write into a local cache folder, held from construction until `release`.

    The operating system holds the lock, so a builder that was killed holds nothing: the file it leaves
    behind is taken over. The file's content, `PID on HOST`, serves only the message to a second builder.

    Raises:
        CacheError: another process builds this cache now, or the folder cannot be written to.

    """

    def __init__(self, folder: LocalFolder) -> None:
        self._path = folder.path / LOCK_NAME
        with explained("lock", self._path):
            self._handle = _acquire(self._path)

    def check(self) -> None:
        """Do nothing: the operating system takes it from nobody."""

    def release(self) -> None:
        """Give the lock back; doing it twice does nothing."""
        if self._handle is not None:
            _release(self._path, self._handle)
            self._handle = None


def _taken(path: os.PathLike[str], holder: str) -> CacheError:
    folder = os.path.dirname(os.fspath(path))
    return CacheError(f"{folder} is being written by {holder}: wait for it to end, or choose another --out")


if sys.platform == "win32":

    def _acquire(path: os.PathLike[str]) -> Any:
        import filelock

        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise _taken(path, "another process") from None
        return lock

    def _release(path: os.PathLike[str], handle: Any) -> None:
        handle.release()

else:
    import fcntl

    def _acquire(path: os.PathLike[str]) -> int | None:
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 256, 0).decode(errors="replace").strip()
                os.close(handle)
                raise _taken(path, f"process {holder}" if holder else "another process") from None
            except OSError:
                os.close(handle)
                raise
            if _names(path, handle):
                with suppress(OSError):  # a full disk: the lock holds without a name in it
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return handle
            # The last holder removed the file between our opening and locking it: lock the new one.
            os.close(handle)

    def _names(path: os.PathLike[str], handle: int) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(handle))
        except FileNotFoundError:
            return False

    def _release(path: os.PathLike[str], handle: int) -> None:
        # Removed before it is unlocked, so that nobody locks a file that is about to vanish unnoticed.
        with suppress(OSError):
            os.unlink(path)
        os.close(handle)
