"""What the processes of a build say to each other: one JSON object a message, and arrays of token ids.

Nothing is pickled, and both ends prove that they hold the same key before anything is read.
"""

import json
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection
from typing import Any

import numpy as np

from ....cache.pairs import Pair
from ..shards import Window

# A machine that vanished without a word is noticed after about a minute: first probe, interval, probes.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Address:
    """Where the leader listens, and the key that is proof of belonging to its build."""

    host: str
    port: int
    key: str

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Address":
        """From that text."""
        return cls(**json.loads(text))


class Channel:
    """One end of the connection between the leader and a follower. Threads may send at the same time."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sending = threading.Lock()
        self._socket = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @classmethod
    def to(cls, address: Address) -> "Channel":
        """Connect to the leader.

        Raises:
            OSError: nobody listens there.
        """
        return cls(Client((address.host, address.port), authkey=bytes.fromhex(address.key)))

    def send(self, say: str, payload: bytes = b"", /, **content: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone.
        """
        head = json.dumps({"say": say, **content}, allow_nan=False).encode()
        with self._sending:
            self._connection.send_bytes(head)
            self._connection.send_bytes(payload)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message and what came with it; one thread at a time.

        Raises:
            EOFError, OSError: the other end is gone.
        """
        head = self._connection.recv_bytes()
        return json.loads(head), self._connection.recv_bytes()

    def hang_up(self) -> None:
        """End the connection, also for a thread that waits in :meth:`receive`; twice does nothing."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def pack(window: Window) -> tuple[dict[str, Any], bytes]:
    """A shard's pairs as a message's content and its payload: all token ids as int32, little-endian."""
    index, pairs, skipped = window
    parts = [ids for pair in pairs for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
    content = {
        "shard": index,
        "skipped": skipped,
        "rows": [pair.row for pair in pairs],
        "pair_ids": [pair.pair_id for pair in pairs],
        "lengths": [len(part) for part in parts],
    }
    return content, b"".join(np.asarray(part, "<i4").tobytes() for part in parts)


def unpack(content: dict[str, Any], payload: bytes) -> Window:
    """What :func:`pack` was given."""
    stops = np.cumsum(content["lengths"], dtype=np.int64)
    parts = iter(np.split(np.frombuffer(payload, "<i4").astype(np.int32), stops[:-1]))
    pairs = [
        Pair(pair_id, row, next(parts), next(parts), next(parts))
        for pair_id, row in zip(content["pair_ids"], content["rows"], strict=True)
    ]
    return content["shard"], pairs, content["skipped"]
