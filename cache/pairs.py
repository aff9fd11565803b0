"""Preference pairs as token ids, and what the reference model said about each of their tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("chosen", "rejected")


def token_ids(ids: ArrayLike) -> NDArray[np.int32]:
    """Return token ids as a contiguous 1-D int32 array.

    Raises:
        ValueError: not one-dimensional, not integers, or outside 0 .. 2**31 - 1.

    """
    array = np.asarray(ids)
    if array.ndim != 1:
        raise ValueError(f"token ids must be one-dimensional, not of shape {array.shape}")
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"token ids must be integers, not {array.dtype}")
    if int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int32).max:
        raise ValueError(f"token ids must lie in 0 .. 2**31 - 1, not {array.min()} .. {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def pair_id(prompt_ids: ArrayLike, chosen_ids: ArrayLike, rejected_ids: ArrayLike) -> str:
    """Return the content hash of a pair: 32 hexadecimal digits, the same on every platform.

    BLAKE2b with a digest of 16 bytes over: the three lengths as little-endian uint64, then the prompt's,
    the chosen and the rejected token ids as little-endian int32. The lengths come first, so that no two
    different triples have the same encoding.
    """
    parts = [token_ids(ids) for ids in (prompt_ids, chosen_ids, rejected_ids)]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.array([len(part) for part in parts], dtype="<u8").tobytes())
    for part in parts:
        digest.update(part.astype("<i4", copy=False).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One preference pair, tokenised: a prompt and its two completions.

    Attributes:
        pair_id: content hash of the three token lists (see `pair_id`).
        row: index of the pair in the source data.
        prompt_ids, chosen_ids, rejected_ids: token ids, int32 [P], [T chosen], [T rejected].

    """

    pair_id: str
    row: int
    prompt_ids: NDArray[np.int32]
    chosen_ids: NDArray[np.int32]
    rejected_ids: NDArray[np.int32]

    @classmethod
    def make(cls, row: int, prompt: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> Self:
        """Build a pair from three lists of token ids and compute its `pair_id`."""
        parts = token_ids(prompt), token_ids(chosen), token_ids(rejected)
        return cls(pair_id(*parts), row, *parts)

    def __eq__(self, other: object) -> bool:
        # Equal content hashes are equal token lists; comparing the arrays would add nothing.
        if not isinstance(other, Pair):
            return NotImplemented
        return self.pair_id == other.pair_id and self.row == other.row

    def __hash__(self) -> int:
        return hash((self.pair_id, self.row))

    def ids(self, side: Side) -> NDArray[np.int32]:
        """Return the completion's token ids, int32 [T], of one side."""
        return self.chosen_ids if side == "chosen" else self.rejected_ids

    @property
    def completion_tokens(self) -> int:
        """Tokens of both completions together."""
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(slots=True)
class SideStatistics:
    """What the reference said at each of the T tokens of one completion. All values are in nats.

    Attributes:
        ref_logp: float32 [T], log-probability of the token that is there.
        ref_entropy: float16 [T], entropy of the full next-token distribution; None where not cached.
        dist_ids: uint32 [T, n], token ids of the n = head + tail cached entries of the distribution: the
            head's most probable tokens first, then the tail's draws; None where not cached.
        dist_logp: float16 [T, n], their log-probabilities under the full distribution; -inf where a token has
            fewer entries than n, in its head or among its draws.
        ref_hidden: float32 [T, d], the reference's last hidden state, of which its output head makes the
            distribution; rounded to bfloat16 where the cache says so; None where not cached.

    """

    ref_logp: NDArray[np.float32]
    ref_entropy: NDArray[np.float16] | None = None
    dist_ids: NDArray[np.uint32] | None = None
    dist_logp: NDArray[np.float16] | None = None
    ref_hidden: NDArray[np.float32] | None = None


@dataclass(slots=True)
class ScoredPair:
    """A pair with the reference's statistics of both completions."""

    pair: Pair
    chosen: SideStatistics
    rejected: SideStatistics

    def side(self, side: Side) -> SideStatistics:
        """Return the statistics of one side."""
        return self.chosen if side == "chosen" else self.rejected


def completion_tokens(scored: Sequence[ScoredPair]) -> int:
    """Count the completion tokens, of both sides, of some scored pairs."""
    return sum(one.pair.completion_tokens for one in scored)
