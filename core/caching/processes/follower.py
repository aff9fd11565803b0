"""A process that follows: it loads the reference, scores the shards it is handed, and says so.

It reads no data and tokenises nothing: the leader sends the token ids. What it writes, a shard and its entry
file, is whole whatever becomes of the leader.
"""

import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ....cache.ledger import Part
from ....cache.manifest import MANIFEST_NAME, Manifest
from ....cache.pairs import ScoredPair
from ....cache.shard import ShardWriter
from ....cache.storage.files import Folder
from ...config.build import BuildConfig
from ...errors import LeaderEndedError, ModelError, TdpoError
from ...launched import Place
from ...quiet import quiet_libraries
from ..reference import find_ref, open_scorer
from ..shards import Window, score_shards
from .channel import Address, Channel, unpack
from .meeting import Meeting, own_share

_TELL_SECONDS = 0.5


def follow(place: Place) -> None:
    """Take part in the build that rank 0 of the launcher leads, until the cache is complete.

    Raises:
        TdpoError: this process failed, of which the leader is told, or the leader did.
    """
    follower = _Follower(_connect(Meeting(place).leader()), place.rank)
    with own_share(place, place.size):
        if follower.work():
            follower.wait_for("complete")


def main() -> None:
    """A follower that the leader itself started: ``python -m tdpo.core.caching.processes.follower RANK``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        channel = _connect(Address.from_json(sys.stdin.readline()))
        _Follower(channel, int(sys.argv[1]), outlive_leader=False).work()
    except (TdpoError, EOFError, OSError):
        sys.exit(2)


def _connect(address: Address) -> Channel:
    try:
        return Channel.to(address)
    except (OSError, EOFError) as error:
        raise LeaderEndedError from error


class _Follower:
    def __init__(self, channel: Channel, rank: int, *, outlive_leader: bool = True):
        self._channel = channel
        self._inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._outlive_leader = outlive_leader
        self._tokens, self._told = 0, time.monotonic()
        self._say("hello", rank=rank, host=socket.gethostname())
        threading.Thread(target=self._listen, name="tdpo-follower", daemon=True).start()

    def work(self) -> bool:
        """Score what the leader hands out; False where the cache was complete without it.

        Raises:
            LeaderEndedError: the leader failed, or was told what went wrong here.
        """
        try:
            begin, _ = self.wait_for("begin", "complete")
            if begin["say"] == "complete":
                return False
            self._score(BuildConfig(**begin["config"]), begin["manifest"], begin["host"])
            return True
        except LeaderEndedError:
            raise
        except TdpoError as error:
            self._say("failed", what=" ".join(str(error).split()))
            raise LeaderEndedError from error
        except Exception:
            self._say("broken", what=traceback.format_exc())
            raise LeaderEndedError from None

    def wait_for(self, *words: str) -> tuple[dict[str, Any], bytes]:
        """The leader's next message, which is one of these."""
        message = self._inbox.get()
        if message is None:
            self._inbox.put(None)
            raise LeaderEndedError
        assert message[0]["say"] in words, message[0]["say"]
        return message

    def _score(self, config: BuildConfig, request: dict[str, Any], leader: str) -> None:
        identity, part = request["identity"], request.pop("part")
        manifest = Manifest(provenance={}, part=part and Part.parse(part), **request)
        self._writer = ShardWriter(Folder.at(config.out), manifest)
        if self._writer.folder.size(MANIFEST_NAME) is None:
            raise TdpoError(
                f"--out {config.out} is not there for this process: give one that every process sees, on a "
                "shared disk or as a URL"
            )
        source = find_ref(config)
        here = socket.gethostname()
        if here != leader and not source.identity().items() <= identity["reference"].items():
            raise ModelError(
                f"--ref {config.ref} on {here} is not the one on {leader}: give both the same model"
            )
        with quiet_libraries():
            score_shards(open_scorer(config, source, identity), self._windows(), self._write, self._advance)
        self._tell()
        self._say("done")

    def _windows(self) -> Iterator[Window]:
        while True:
            self._say("next")
            message, payload = self.wait_for("score", "no more")
            if message["say"] == "no more":
                return
            yield unpack(message, payload)

    def _write(self, index: int, scored: list[ScoredPair], skipped: dict[str, list[int]]) -> None:
        with self._writing:
            shard = self._writer.write_shard(index, scored, skipped)
        self._say("finished", shard=asdict(shard))

    def _advance(self, tokens: int) -> None:
        if self._ended.is_set():
            raise LeaderEndedError
        self._tokens += tokens
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._say("tokens", tokens=self._tokens)
        self._tokens, self._told = 0, time.monotonic()

    def _say(self, what: str, /, **content: Any) -> None:
        try:
            self._channel.send(what, **content)
        except OSError:
            raise LeaderEndedError from None

    def _listen(self) -> None:
        try:
            while True:
                self._inbox.put(self._channel.receive())
        except (EOFError, OSError):
            self._ended.set()
            self._inbox.put(None)
            if not self._outlive_leader:
                # Not to wait for the batch that is being scored; a shard that is being written is finished.
                self._writing.acquire()
                os._exit(2)


if __name__ == "__main__":
    main()
