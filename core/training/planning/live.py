"""Which tensors are alive when most bytes are, while PyTorch runs on tensors that have no content.

Under torch's FakeTensorMode every operation yields tensors of the right shape and dtype, and nothing is
computed or allocated. What autograd keeps, what autocast caches and what an optimiser makes for itself
is then kept, cached and made as in a real step, and only has to be counted.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class _Block:
    """One storage: its size, what it is for, and whether it still is."""

    size: int
    kind: str


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, from when they are made to when nothing holds them.

    Enter it inside a FakeTensorMode.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        """What storages made now are for, until :meth:`mark` knows better."""
        self.total = 0
        self._alive: dict[int, _Block] = {}
        # Every storage that came (+) or went (-), in order.
        self._events: list[tuple[int, _Block]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(tree_iter(result))
        return result

    def add(self, values: Iterable[Any], kind: str | None = None) -> None:
        """Count what the tensors among ``values`` hold, if it is not counted yet."""
        for value in values:
            if isinstance(value, Tensor):
                self._add(value.untyped_storage(), kind or self.kind)

    def mark(self, values: Iterable[Tensor | None], kind: str) -> None:
        """Say what storages are for, also for the time before."""
        for value in values:
            if value is not None:
                self._add(value.untyped_storage(), kind)
                self._alive[value.untyped_storage()._cdata].kind = kind

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Storages made inside are for ``kind``."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def spike(self, size: int, kind: str) -> None:
        """Bytes that are there for a moment, which no operation here makes."""
        block = _Block(size, kind)
        self._events += [(1, block), (-1, block)]

    def hold(self, size: int, kind: str) -> None:
        """Bytes that are there from now on, which no operation here makes."""
        self.total += size
        self._events.append((1, _Block(size, kind)))

    def peak(self, since: int = 0, until: int | None = None) -> dict[str, int]:
        """Bytes by what they are for, when their sum was highest after event ``since``, until ``until``."""
        total, highest, at = 0, -1, 0
        for number, (sign, block) in enumerate(self._events[:until], 1):
            total += sign * block.size
            if number >= since and total > highest:
                highest, at = total, number
        found: dict[str, int] = {}
        for sign, block in self._events[:at]:
            found[block.kind] = found.get(block.kind, 0) + sign * block.size
        return {kind: size for kind, size in found.items() if size}

    @property
    def now(self) -> int:
        """Events so far, for :meth:`peak`."""
        return len(self._events)

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        block = self._alive[key] = _Block(storage.nbytes(), kind)
        self.total += block.size
        self._events.append((1, block))
        weakref.finalize(storage, self._remove, key, block).atexit = False

    def _remove(self, key: int, block: _Block) -> None:
        if self._alive.get(key) is block:
            del self._alive[key]
        self.total -= block.size
        self._events.append((-1, block))
