"""The leader of a build: it hands out shards, enters what comes back, and ends all when one fails."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ....cache.ledger import Shard, parse_shard
from ....cache.manifest import Manifest
from ...config.build import BuildConfig
from ...errors import TdpoError
from ...launched import Place, only_this_machine
from ..shards import Waiting
from .channel import Address, Channel, pack
from .meeting import STARTUP, Meeting, start_followers

if TYPE_CHECKING:
    import subprocess

_LOOK_AGAIN = 0.2
_GOODBYE = 10.0


class Leader:
    """The leader's end of a build by several processes; a context manager. Alone, it does nothing.

    Launched followers wait for :meth:`leading` from the start, so that they learn of a failure before it;
    those of ``--num-processes`` are started by it, when it is known that something is to be done.
    """

    def __init__(self, config: BuildConfig, place: Place):
        self._config = config
        self._launched = place.size > 1
        self._followers = place.size - 1
        self._children: list[subprocess.Popen[bytes]] = []
        self._channels: dict[int, Channel] = {}
        self._done: set[int] = set()
        self._failure: BaseException | None = None
        self._state = threading.Condition()
        self._begun = threading.Event()
        self._work: Waiting | None = None
        self._listener: Listener | None = None
        self._closing = False
        if self._launched:
            self._meeting = Meeting(place)
            address = self._listen()
            self._meeting.announce(address.port, address.key)

    @contextmanager
    def leading(
        self,
        manifest: Manifest,
        work: Waiting,
        enter: Callable[[Shard], None],
        advance: Callable[[int], None],
    ) -> Iterator[None]:
        """Let the followers work; at the end of the block, wait for their last shards.

        Where the block fails, or a follower does, all of them are ended before the error goes on.

        Args:
            manifest: of the cache that is built.
            work: the shards to be scored, of which this process takes its share itself.
            enter: enters a finished shard into the ledger; called from several threads.
            advance: told how many tokens are done; called from several threads, one at a time.

        Raises:
            TdpoError: a follower failed.
        """
        self._manifest, self._work, self._enter, self._advance = manifest, work, enter, advance
        if not self._launched and min(self._config.num_processes, len(work)) > 1:
            self._followers = min(self._config.num_processes, len(work)) - 1
            self._children = start_followers(self._followers, self._listen())
        self._begun.set()
        try:
            yield
            self._wait_for(self._done)
        except BaseException:
            self.stop()
            raise

    def advance(self, tokens: int) -> None:
        """Count tokens as done, by this process or another.

        Raises:
            TdpoError: a follower failed.
        """
        self._check()
        with self._state:
            self._advance(tokens)

    def _check(self) -> None:
        for rank, child in enumerate(self._children, 1):
            if child.poll() is not None and rank not in self._done:
                # What it said before it ended is still being read.
                with self._state:
                    self._state.wait_for(partial(self._heard_of, rank), timeout=1)
                if rank not in self._done:
                    self._fail(rank, f"ended {_how(child.returncode)}")
        if self._failure is not None:
            raise self._failure

    def _heard_of(self, rank: int) -> bool:
        return self._failure is not None or rank in self._done

    def _wait_for(self, those: Collection[int]) -> None:
        """Wait until all followers are among those."""
        deadline = time.monotonic() + STARTUP.total_seconds()
        while len(those) < self._followers:
            self._check()
            if time.monotonic() > deadline and len(self._channels) < self._followers:
                absent = min(set(range(1, self._followers + 1)) - self._channels.keys())
                raise TdpoError(
                    f"rank {absent} of {self._followers + 1} processes has not come: check its log, or start "
                    "fewer"
                )
            with self._state:
                self._state.wait(_LOOK_AGAIN)
        self._check()

    def finish(self) -> None:
        """Tell launched followers that the cache is complete.

        Raises:
            TdpoError: one of them failed.
        """
        if not self._launched:
            return
        self._begun.set()
        self._wait_for(self._channels)
        for channel in self._channels.values():
            with suppress(OSError):
                channel.send("complete")

    def _listen(self) -> Address:
        host = "127.0.0.1" if not self._launched or only_this_machine() else "0.0.0.0"
        key = secrets.token_hex(32)
        self._listener = Listener((host, 0), backlog=self._followers, authkey=bytes.fromhex(key))
        port = self._listener.address[1]
        threading.Thread(target=self._accept, name="tdpo-leader", daemon=True).start()
        return Address("127.0.0.1", port, key)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing:
            try:
                channel = Channel(self._listener.accept())
            except (AuthenticationError, EOFError, OSError):
                continue  # somebody else's
            threading.Thread(target=self._serve, args=(channel,), name="tdpo-leader", daemon=True).start()

    def _serve(self, channel: Channel) -> None:
        rank, where = 0, ""
        try:
            hello, _ = channel.receive()
            rank, where = hello["rank"], hello["host"]
            with self._state:
                self._channels[rank] = channel
                self._state.notify_all()
            self._begun.wait()
            if self._work is None:
                return
            channel.send(
                "begin",
                host=socket.gethostname(),
                config=asdict(self._config),
                manifest=_request(self._manifest),
            )
            while self._answer(channel, rank, where):
                pass
        except (EOFError, OSError):
            with suppress(Exception):
                self._children[rank - 1].wait(timeout=1)
            if not self._children or self._children[rank - 1].returncode is None:
                self._fail(rank, f"ended{' on ' + where if where else ''} without a word")
        except BaseException as error:
            self._fail(rank, error)

    def _answer(self, channel: Channel, rank: int, where: str) -> bool:
        """Deal with a follower's next message; False where it was the last."""
        assert self._work is not None
        message, _ = channel.receive()
        if message["say"] == "next":
            if (window := self._work.take()) is not None:
                content, payload = pack(window)
                channel.send("score", payload, **content)
            else:
                channel.send("no more")
        elif message["say"] == "tokens":
            with self._state:
                self._advance(message["tokens"])
        elif message["say"] == "finished":
            self._enter(parse_shard(message["shard"], f"rank {rank}"))
        elif message["say"] == "failed":
            raise TdpoError(f"rank {rank}{' on ' + where if self._launched else ''}: {message['what']}")
        elif message["say"] == "broken":
            raise RuntimeError(f"rank {rank} on {where}:\n{message['what']}")
        elif message["say"] == "done":
            with self._state:
                self._done.add(rank)
                self._state.notify_all()
            return False
        return True

    def _fail(self, rank: int, what: BaseException | str) -> None:
        if isinstance(what, str):
            what = TdpoError(
                f"rank {rank}, one of {self._followers + 1} processes, {what}: finished shards are kept; run "
                "the same command again"
            )
        with self._state:
            self._failure = self._failure or what
            self._state.notify_all()

    def __enter__(self) -> "Leader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all connections, and the processes that were started here; doing it twice does nothing."""
        self._begun.set()
        if self._listener is not None and not self._closing:
            self._closing = True
            with suppress(OSError):  # wakes the thread that waits for callers
                socket.create_connection(("127.0.0.1", self._listener.address[1]), timeout=1).close()
            self._listener.close()
        deadline = time.monotonic() + _GOODBYE
        for channel in list(self._channels.values()):
            channel.hang_up()
        for rank, child in enumerate(self._children, 1):
            if rank not in self._channels:
                child.kill()  # still starting: it holds nothing, and would not hear of the end
            with suppress(Exception):
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
            child.kill()
            child.wait()


def _request(manifest: Manifest) -> dict[str, Any]:
    return {
        "identity": manifest.identity,
        "source_rows": manifest.source_rows,
        "shard_rows": manifest.shard_rows,
        "part": None if manifest.part is None else str(manifest.part),
    }


def _how(code: int) -> str:
    return f"with signal {-code}" if code < 0 else f"with exit code {code}"
