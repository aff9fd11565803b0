"""Made-up batches for the checks: every statistic there, any length and dtype, a record of what is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..objective import STATISTICS, Completions

WITH_GRADIENT = ("logp", "forward_kl", "reverse_kl", "entropy", "log_collision")
"""The statistics that come from the policy."""


@dataclass(frozen=True)
class Watched(Completions):
    """A side that notes which statistics are read of it, in ``seen``."""

    seen: Any = None

    def __getattribute__(self, name: str) -> Any:
        if name in (*STATISTICS, "logp", "ref_logp", "draw_seed"):
            object.__getattribute__(self, "seen").add(name)
        return object.__getattribute__(self, name)


class Means(dict[str, Tensor]):
    """Running means by their names; those that are read are noted in ``read``."""

    def __init__(self, values: Mapping[str, Tensor], read: set[str]):
        super().__init__(values)
        self.noted = read

    def __getitem__(self, name: str) -> Tensor:
        self.noted.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping."""
        self.noted.add(name)
        return super().get(name, default)


class Extra(Mapping[str, Tensor]):
    """Added statistics of any name, made when they are asked for; ``seen`` holds their names."""

    def __init__(self, mask: Tensor, added: Mapping[str, int], dtype: torch.dtype, seed: int, seen: set[str]):
        self.mask, self.added, self.dtype, self.seed, self.seen = mask, added, dtype, seed, seen

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        shape = (len(self.mask), self.added[name]) if name in self.added else tuple(self.mask.shape)
        generator = torch.Generator().manual_seed(self.seed + sum(name.encode()))
        values = torch.rand(shape, generator=generator, dtype=torch.float64).to(self.dtype) + 0.1
        # As a cache gives them: 0 at padding.
        return values if name in self.added else torch.where(self.mask, values, 0.0)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.seen)

    def __len__(self) -> int:
        return len(self.seen)


def batch(
    added: Mapping[str, int],
    *,
    pairs: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Watched, Watched]:
    """Chosen and rejected sides of random lengths, statistics as leaves with gradient where the policy's.

    Args:
        added: added statistics that are vectors, of a completion or the pair: name -> their length.
        pairs: B.
        seed: of the values.
        dtype: of the statistics.
    """
    seen: set[str] = set()
    return _side(added, pairs, 2 * seed, dtype, seen), _side(added, pairs, 2 * seed + 1, dtype, seen)


def _side(added: Mapping[str, int], pairs: int, seed: int, dtype: torch.dtype, seen: set[str]) -> Watched:
    generator = torch.Generator().manual_seed(seed)
    # One of a single token, and one row that is not padded.
    lengths = torch.cat(
        [torch.tensor([1, 6]), torch.randint(1, 7, (max(0, pairs - 2),), generator=generator)]
    )
    mask = torch.arange(6) < lengths[:pairs, None]

    def some() -> Tensor:
        return (torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 2 + 0.05).to(dtype)

    values: dict[str, Any] = {name: some() for name in STATISTICS}
    values |= {"logp": -some(), "ref_logp": -some(), "log_collision": -some()}
    values["token_weight"] = torch.where(mask, values["token_weight"], 0.0)
    values["draw_seed"] = torch.randint(1 << 62, (pairs,), generator=generator)
    for name in WITH_GRADIENT:
        values[name].requires_grad_()
    return Watched(mask=mask, extra=Extra(mask, added, dtype, seed, seen), seen=seen, **values)


def rows(side: Watched, chosen: Any) -> Watched:
    """The side of some of its pairs, ``chosen`` an index of the first dimension; without gradient."""
    values: dict[str, Any] = {name: value.detach()[chosen] for name, value in tensors(side).items()}
    return replace(side, **values, extra=_Rows(side.extra, chosen))


def tensors(side: Completions) -> dict[str, Tensor]:
    """The fields of a side that are tensors."""
    values = {f.name: getattr(side, f.name) for f in fields(Completions)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class _Rows(Mapping[str, Tensor]):
    def __init__(self, whole: Mapping[str, Tensor], chosen: Any):
        self.whole, self.chosen = whole, chosen

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[name][self.chosen]

    def __contains__(self, name: object) -> bool:
        return name in self.whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


def padded_with(side: Watched, fill: float) -> Watched:
    """The side with ``fill`` wherever there is padding; statistics are leaves again."""
    values: dict[str, Any] = {}
    for name, value in tensors(side).items():
        # Token weights and added statistics are 0 at padding, always; seeds are a side's.
        if name in ("mask", "token_weight", "draw_seed"):
            continue
        values[name] = torch.where(side.mask, value.detach(), fill)
        values[name].requires_grad_(name in WITH_GRADIENT)
    return replace(side, **values)
