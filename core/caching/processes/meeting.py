"""How the processes of a build are started, find each other, and share the machine.

Two ways lead to several processes. ``--num-processes`` starts followers from the command itself, which
leads them: its exit code, its error line and Ctrl-C stay what they are, and no launcher adds its own lines.
A launcher (``torchrun``, ``accelerate launch``) starts the same command several times, on one machine or
several, and tells each its place in the environment.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

from ...errors import TdpoError
from ...launched import Place, only_this_machine, threads_each
from .channel import Address

STARTUP = timedelta(minutes=5)

# A script may build several caches under one launcher: every process counts them alike.
_builds = count()


class Meeting:
    """Where launched processes find each other: the store that the launcher, or the leader, keeps for torch.

    Raises:
        TdpoError: it cannot be reached.
    """

    def __init__(self, place: Place):
        from torch.distributed.rendezvous import rendezvous

        self.place = place
        self._key = f"tdpo/build/{next(_builds)}"
        with _reached():
            # Kept: where the launcher has none, the leader's is the server.
            self._store: Any = next(iter(rendezvous("env://", place.rank, place.size, timeout=STARTUP)))[0]

    def announce(self, port: int, key: str) -> None:
        """Tell the followers where the leader listens."""
        with _reached():
            self._store.set(self._key, Address(_own_host(), port, key).to_json())

    def leader(self) -> Address:
        """Where the leader listens; waits for it."""
        with _reached():
            self._store.wait([self._key], STARTUP)
            return Address.from_json(self._store.get(self._key).decode())


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise TdpoError(
            f"the other processes cannot be reached at {where} ({what}): start all of them with torchrun or "
            "accelerate launch"
        ) from error


def _own_host() -> str:
    """An address of this machine that the others reach: the one that it has on the way to the master's."""
    if only_this_machine():
        return "127.0.0.1"
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(master)  # sends nothing
        host = str(probe.getsockname()[0])
    return master[0] if host.startswith("127.") else host


def start_followers(number: int, address: Address) -> list["subprocess.Popen[bytes]"]:
    """Start followers on this machine, each with a GPU of its own as far as there are enough.

    The address, with its key, goes through their standard input, which nobody else can read.
    """
    followers: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(1, number + 1):
            child = subprocess.Popen(
                [sys.executable, "-m", "tdpo.core.caching.processes.follower", str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the leader alone
                env={**os.environ, **_gpu(index), **_threads(number + 1)},
            )
            followers.append(child)
            assert child.stdin is not None
            with child.stdin as pipe:
                pipe.write(address.to_json().encode() + b"\n")
    except OSError as error:
        for child in followers:
            child.kill()
        raise TdpoError(
            f"--num-processes {number + 1}: process {len(followers)} does not start ({error}); start fewer"
        ) from error
    return followers


def _gpu(index: int) -> dict[str, str]:
    import torch

    gpus = torch.cuda.device_count()
    if gpus < 2:
        return {}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",")[:gpus] if listed else [str(gpu) for gpu in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[index % gpus]}


def _threads(processes: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads_each(processes))} if "OMP_NUM_THREADS" not in os.environ else {}


@contextmanager
def own_share(place: Place, processes: int) -> Iterator[None]:
    """Inside the block this process keeps to its share of the machine: its own GPU, its part of the cores.

    A launcher has seen to the cores itself.
    """
    import torch

    if place.size > 1 and torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    threads = torch.get_num_threads()
    if place.size == 1 and processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_each(processes))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
