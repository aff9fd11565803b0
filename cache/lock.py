"""One builder at a time: a lock on a cache folder that dies with the process holding it."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import CacheError
from .files import explained

if TYPE_CHECKING:
    from .files import Folder

LOCK_NAME = ".lock"


class BuilderLock:
    """The right to write into a cache folder, held from construction until `release`.

    The operating system holds the lock, so a builder that was killed holds nothing: the file it leaves
    behind is taken over. The file's content, `PID on HOST`, serves only the message to a second builder.

    Raises:
        CacheError: another process builds this cache now, or the folder cannot be written to.

    """

    def __init__(self, folder: Folder) -> None:
        self._path = folder.path / LOCK_NAME
        with explained("lock", self._path):
            self._handle = _acquire(self._path)

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
