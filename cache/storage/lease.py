"""One builder at a time in remote storage, which has no locks: a lease that its holder keeps changing."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CacheError

if TYPE_CHECKING:
    from .remote import RemoteFolder

LEASE_NAME = ".lock"

LEASE_SECONDS = 10.0
"""Time between two changes of a lease by its holder."""

_GRACE = 4
"""Changes that a holder may miss before it is taken for dead."""


class Lease:
    """The right to write into a remote cache folder, held from construction until `release`.

    The lease is an object made only where there is none. Its holder changes it every `seconds`, from a thread
    of its own. Another builder never looks at a clock of the holder's or the store's: it watches the object,
    refuses as soon as that changes, and takes over where it does not change for four times as long, or where
    the holder was a process of this machine that is gone. A holder that was silent for so long, and finds the
    lease another's, must stop: `check` says so.

    Args:
        folder: the cache's folder.
        seconds: between two changes. All builders of a folder use the same.

    Raises:
        CacheError: another process builds this cache now, or the store refuses.

    """

    def __init__(self, folder: RemoteFolder, seconds: float = LEASE_SECONDS) -> None:
        self._folder, self._seconds = folder, seconds
        self._content: dict[str, Any] = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": _machine(),
            "pid": os.getpid(),
            "nonce": secrets.token_hex(16),
            "changes": 0,
        }
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._acquire()
        self._thread = threading.Thread(target=self._keep_changing, name="tdpo-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            CacheError: another builder took it over, or the store cannot be asked.

        """
        with self._guard:
            if not self._is_ours():
                raise CacheError(
                    f"{self._folder.location} was taken over by another builder while this one was silent: "
                    "finished shards are kept; let the other end, or run the same command again"
                )

    def release(self) -> None:
        """Give the lease back; doing it twice does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()  # or it could bring the lease back
        with suppress(CacheError):
            if self._is_ours():
                self._folder.remove(LEASE_NAME)

    def _acquire(self) -> None:
        while not self._folder.create_file(LEASE_NAME, self._bytes()):
            there = self._read()
            if there is None:
                continue
            if not _is_dead(there):
                self._watch(there)
            # Whoever takes over at the same instant is found by `check`, before the loser enters anything.
            if self._read() == there:
                self._folder.remove(LEASE_NAME)

    def _watch(self, there: bytes) -> None:
        """Return when the lease has not changed for the time of grace, or is gone; refuse when it changes."""
        end = time.monotonic() + _GRACE * self._seconds
        while time.monotonic() < end:
            time.sleep(self._seconds / 4)
            now = self._read()
            if now is None:
                return
            if now != there:
                holder = _parsed(now).get("holder", "another process")
                raise CacheError(
                    f"{self._folder.location} is being written by {holder}: wait for it to end, or choose "
                    "another --out"
                )

    def _keep_changing(self) -> None:
        while not self._stopped.wait(self._seconds):
            # Where the store cannot be reached now, perhaps it can next time; `check` has the last word.
            with suppress(CacheError), self._guard:
                if not self._is_ours():
                    return
                self._content["changes"] += 1
                self._folder.overwrite_file(LEASE_NAME, self._bytes())

    def _is_ours(self) -> bool:
        there = self._read()
        return there is not None and _parsed(there).get("nonce") == self._content["nonce"]

    def _bytes(self) -> bytes:
        return json.dumps(self._content).encode()

    def _read(self) -> bytes | None:
        """Return the lease's content, None where there is none."""
        try:
            return self._folder.read(LEASE_NAME)
        except CacheError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    lease = _parsed(content)
    pid = lease.get("pid")
    if lease.get("machine") != _machine() or type(pid) is not int or pid < 1 or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _machine() -> str:
    """Name the processes among which an id is one's own: containers share kernels, and hosts names."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
