"""Statistics added to a cache, on their way from cached pairs to the sides that an objective is given."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...cache.pairs import ScoredPair
from ..joining import JoinedPair
from .layout import to_padded

# A batch is a flat dictionary of tensors: the key says what a value of the column belongs to.
_PREFIXES = {"token": "token:", "entries": "token:", "completion": "completion:", "pair": "pair:"}


def added_columns(records: Sequence[ScoredPair]) -> dict[str, Tensor]:
    """The added statistics of ``B`` pairs as tensors; empty where there are none.

    Returns:
        ``token:NAME`` [N] or [N, n], chosen sides first; ``completion:NAME`` [2B, d]; ``pair:NAME`` [B, d].
        float32, or int64 for whole numbers.
    """
    joined = [one for one in records if isinstance(one, JoinedPair)]
    if len(joined) < len(records):
        return {}
    columns = {}
    for name, first in joined[0].added.items():
        values = [one.added[name].chosen for one in joined]
        if first.shape != "pair":
            values += [one.added[name].rejected for one in joined]
        whole = np.concatenate(values) if _PREFIXES[first.shape] == "token:" else np.stack(values)
        dtype = np.int64 if whole.dtype.kind in "iu" else np.float32
        columns[_PREFIXES[first.shape] + name] = torch.from_numpy(whole.astype(dtype))
    return columns


def added_sides(batch: Mapping[str, Tensor], mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``Completions.extra`` of the chosen and of the rejected side of a batch.

    Args:
        batch: holds what :func:`added_columns` made.
        mask: [2B, T] bool, True at completion tokens.
    """
    pairs = len(mask) // 2
    chosen, rejected = {}, {}
    for key, value in batch.items():
        kind, found, name = key.partition(":")
        if not found:
            continue
        whole = to_padded(value, mask) if kind == "token" else value
        chosen[name] = whole if kind == "pair" else whole[:pairs]
        rejected[name] = whole if kind == "pair" else whole[pairs:]
    return chosen, rejected
