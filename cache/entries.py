"""The cached entries of the distributions: as many a token as it deserves on disk, one width in memory.

In memory a token has n = head + tail entries, and one that it does not have is of log-probability -inf. On
disk there is no trace of those: two counts say how many entries of the head, and how many draws, a token has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Entries(NamedTuple):
    """What the `dist` columns hold of some tokens: N tokens with S entries together."""

    head: NDArray[Any]
    """[N]: entries of the head of each token."""
    tail: NDArray[Any]
    """[N]: draws of each token."""
    ids: NDArray[Any]
    """[S], token after token, each one's head first."""
    logp: NDArray[Any]
    """[S]."""


def packed(ids: NDArray[Any], logp: NDArray[Any], head: int) -> Entries:
    """Take out the entries that are there, of ids and log-probabilities [N, n] with `head` first columns."""
    there = logp > -np.inf
    return Entries(there[:, :head].sum(1), there[:, head:].sum(1), ids[there], logp[there])


def misfit(entries: Entries, head: int, tail: int) -> str | None:
    """Say why these cannot be the entries of tokens that have at most `head` and `tail`; None if they can."""
    if (entries.head > head).any() or (entries.tail > tail).any():
        return f"a token has more entries than head {head} and tail {tail}"
    total = int(entries.head.sum(dtype=np.int64) + entries.tail.sum(dtype=np.int64))
    if not len(entries.ids) == len(entries.logp) == total:
        return f"dist_head and dist_tail count {total} entries, there are {len(entries.ids)} ids"
    return None


def unpacked(entries: Entries, head: int, tail: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ids and log-probabilities [N, n], n = `head` + `tail`, of entries that fit.

    An entry that a token does not have has id 0 and log-probability -inf.
    """
    shape = len(entries.head), head + tail
    if len(entries.ids) == shape[0] * shape[1]:
        return entries.ids.reshape(shape), entries.logp.reshape(shape)
    there = np.empty(shape, dtype=bool)
    np.less(np.arange(head), entries.head[:, None], out=there[:, :head])
    np.less(np.arange(tail), entries.tail[:, None], out=there[:, head:])
    ids, logp = np.zeros(shape, entries.ids.dtype), np.full(shape, -np.inf, entries.logp.dtype)
    ids[there], logp[there] = entries.ids, entries.logp
    return ids, logp
