"""Hidden states through the output head, a tile of [positions, vocabulary] at a time, and gradients back.

Operands are rounded to the dtype that autocast, or the model, asks for; every product is accumulated and
returned in float32 (float64 for float64 operands).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import Head

# Rows of the output embedding upcast at a time where the hardware cannot multiply in half precision
# into float32 (a whole float32 copy of the embedding would cost gigabytes).
UPCAST_ROWS = 8192


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything else is accumulated in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the head's matrix products take: autocast's dtype where it is on, else the wider of the two."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def multiply(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> Tensor:
    """``out = a @ b``, or ``out += a @ b``; on CUDA ``a`` and ``b`` may be in half precision."""
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, beta=int(add), out=out)
    if add:
        return out.add_(torch.mm(a, b, out_dtype=out.dtype))
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


@dataclass(frozen=True)
class Projection:
    """``N`` hidden states and the head that they go through, as the matrix products take them."""

    head: Head
    dtype: torch.dtype
    """Of the products' operands."""
    hidden: Tensor
    """[N, d]."""
    weight: Tensor
    """[V, d]."""
    inner: Tensor | None
    """[N, r] float32 or wider: what the head's low-rank part made of the hidden states."""
    up: Tensor | None
    """[V, r] float32 or wider: through which it becomes logits."""

    @classmethod
    def of(
        cls, head: Head, hidden: Tensor, dtype: torch.dtype, low_rank: tuple[Tensor, Tensor] | None = None
    ) -> "Projection":
        """Hidden states [N, d] in front of ``head``, with the operands in ``dtype``.

        Args:
            head: the output head.
            hidden: [N, d].
            dtype: what the products take.
            low_rank: ``inner`` and ``up`` where they are at hand; made of the head otherwise.
        """
        wide = accumulation_dtype(dtype)
        pair = low_rank if low_rank is not None else head.low_rank(hidden)
        inner, up = (None, None) if pair is None else (part.to(wide) for part in pair)
        hidden = _operand(hidden, dtype)
        return cls(head, dtype, hidden, head.weight, inner, up)

    def memory(self, rows: int, columns: int) -> Tensor:
        """Room for one tile of logits after the other, flat."""
        return self.hidden.new_empty(rows * columns, dtype=accumulation_dtype(self.dtype))

    def holding(self) -> "Projection":
        """With the whole weight in the operands' dtype, for many tiles of whole rows."""
        weight = self.weight.to(self.dtype)
        return Projection(self.head, self.dtype, self.hidden, weight, self.inner, self.up)

    @torch.no_grad()
    def logits(self, rows: slice, columns: slice | None = None, out: Tensor | None = None) -> Tensor:
        """One tile [C, Vs] of the logits, without gradient; the caller's to overwrite.

        ``out`` is memory to put it in: :meth:`memory`.
        """
        head, columns = self.head, columns or slice(0, self.head.vocab_size)
        wide = accumulation_dtype(self.dtype)
        hidden = self.hidden[rows]
        shape = (len(hidden), columns.stop - columns.start)
        z = hidden.new_empty(shape, dtype=wide) if out is None else out[: shape[0] * shape[1]].view(shape)
        # Autocast has had its say in dtype; it would round what is accumulated in float32.
        with torch.autocast(z.device.type, enabled=False):
            for part in self.slices(columns):
                at = slice(part.start - columns.start, part.stop - columns.start)
                multiply(z[:, at], hidden, self.operand(part).T)
            if self.inner is not None and self.up is not None:
                multiply(z, self.inner[rows], self.up[columns].T, add=True)
        if head.bias is not None:
            z += head.bias[columns]
        if head.scale != 1.0:
            z *= head.scale
        if head.softcap is not None:
            z.div_(head.softcap).tanh_().mul_(head.softcap)
        return z

    def slices(self, columns: slice) -> list[slice]:
        """The rows of the weight to multiply at a time: all of ``columns``, unless they must be upcast."""
        low = self.dtype != accumulation_dtype(self.dtype)
        step = UPCAST_ROWS if low and not self.weight.is_cuda else max(1, columns.stop - columns.start)
        starts = range(columns.start, columns.stop, step)
        return [slice(start, min(start + step, columns.stop)) for start in starts]

    def operand(self, columns: slice) -> Tensor:
        """Those rows [Vs, d] of the weight, as the products take them."""
        return _operand(self.weight[columns], self.dtype)

    def gradient(self, d: Tensor) -> Tensor:
        """A tile's logit gradient as the products back take it: not rounded where it need not be."""
        return d.to(self.dtype) if d.is_cuda else d


def _operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype``; held in float32 where the hardware multiplies nothing else into float32."""
    x = x.to(dtype)
    return x if x.is_cuda else x.to(accumulation_dtype(dtype))


def logits(head: Head, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [N, V] of hidden states [N, d], in float32 (float64 for float64 operands), without gradient."""
    return Projection.of(head, hidden, dtype).holding().logits(slice(0, len(hidden)))


class Gradients:
    """Gradients of what goes into a projection, from the tiles of its logits' gradient.

    Tiles come with the vocabulary in the outer loop and positions in the inner one, each starting at 0. Sums
    are float32 or wider; that of the weight only for one slice of the vocabulary at a time.

    Args:
        projection: that which made the logits.
        wanted: whether the hidden states, weight, bias, inner and up have a gradient.
    """

    def __init__(self, projection: Projection, wanted: tuple[bool, ...]):
        self._projection = projection
        n, wide = len(projection.hidden), accumulation_dtype(projection.dtype)
        # Without positions there are no tiles to write what is summed.
        make = torch.empty_like if n else torch.zeros_like
        bias, weight = projection.head.bias, projection.weight
        has_hidden, has_weight, has_bias, has_inner, has_up = wanted
        self.hidden = make(projection.hidden, dtype=wide) if has_hidden else None
        self.weight = make(weight) if has_weight else None
        self.bias = make(bias, dtype=wide) if has_bias and bias is not None else None
        inner, up = projection.inner, projection.up
        self.inner = make(inner) if has_inner and inner is not None else None
        self.up = make(up) if has_up and up is not None else None
        self._slice: Tensor | None = None

    @property
    def summed(self) -> int:
        """Numbers in a row of the weight's gradient where a slice of it is summed before it is rounded."""
        wide = accumulation_dtype(self._projection.dtype)
        return 0 if self.weight is None or self.weight.dtype == wide else self.weight.shape[1]

    def add(self, d: Tensor, rows: slice, columns: slice) -> None:
        """Take in one tile [C, Vs] of the gradient of the product (scale and cap behind it)."""
        projection, first = self._projection, rows.start == 0
        if self.bias is not None:
            total = d.sum(0)
            self.bias[columns] = total if first else self.bias[columns] + total
        if projection.inner is not None and projection.up is not None:
            if self.inner is not None:
                multiply(self.inner[rows], d, projection.up[columns], add=columns.start > 0)
            if self.up is not None:
                multiply(self.up[columns], d.T, projection.inner[rows], add=not first)
        if self.hidden is None and self.weight is None:
            return
        d = projection.gradient(d)
        if self.hidden is not None:
            for part in projection.slices(columns):
                at = slice(part.start - columns.start, part.stop - columns.start)
                multiply(self.hidden[rows], d[:, at], projection.operand(part), add=part.start > 0)
        if self.weight is not None:
            self._add_to_weight(self.weight[columns], d, rows)

    def _add_to_weight(self, out: Tensor, d: Tensor, rows: slice) -> None:
        hidden = self._projection.hidden
        if rows.start == 0:
            wide = accumulation_dtype(self._projection.dtype)
            self._slice = out if out.dtype == wide else out.new_empty(out.shape, dtype=wide)
        assert self._slice is not None
        multiply(self._slice, d.T, hidden[rows], add=rows.start > 0)
        if rows.stop == len(hidden):
            if self._slice is not out:
                out.copy_(self._slice)
            self._slice = None
