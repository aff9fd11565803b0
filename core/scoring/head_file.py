"""The reference's output head in a file of its own: written once by the build, read once by a fit."""

import json
from typing import IO, Any

from ...cache.head import head_numbers
from ...cache.schema import HEAD_NAME, CachedStatistics
from ...cache.storage.files import Folder, is_url
from ..errors import ModelError
from .head import Head


def write_head(head: Head, file: IO[bytes]) -> None:
    """Write a head as safetensors: ``weight`` [V, d] and ``bias`` [V], if any, in the model's own precision.

    The metadata has one key, ``head``: JSON with ``scale``, ``softcap`` (or null) and ``dtype``. With one key
    the same head gives the same bytes; several would come in any order.
    """
    from safetensors.torch import save

    if head.adapters:
        raise ModelError("a head with an adapter beside it cannot be stored: merge the adapter first")
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    dtype = str(head.weight.dtype).removeprefix("torch.")
    described = {"scale": head.scale, "softcap": head.softcap, "dtype": dtype}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    file.write(save(plain, {"head": json.dumps(described)}))


def read_head(folder: Folder, statistics: CachedStatistics, device: Any = "cpu") -> Head:
    """The head of a cache's reference, out of reach of gradients.

    Args:
        folder: the cache's.
        statistics: what it holds, hidden states among them.
        device: where the head is wanted.

    Raises:
        CacheError: the file cannot be read, or does not fit the hidden states.
    """
    from safetensors.torch import load, load_file

    scale, softcap = head_numbers(folder, statistics)
    # A local file is mapped, not read into memory first.
    remote = is_url(folder.location)
    found = load(folder.read(HEAD_NAME)) if remote else load_file(folder.locate(HEAD_NAME))
    tensors = {name: tensor.to(device) for name, tensor in found.items()}
    return Head(tensors["weight"], tensors.get("bias"), scale, softcap)
