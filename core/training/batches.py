"""How the pairs that a process takes at a time become micro-batches: one forward and backward pass each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...cache.pairs import Pair, ScoredPair
from ..scoring.layout import lay_out_packed, lay_out_shared, separate_width, shared_width
from .data import collate

MicroBatch = dict[str, Tensor]

# Names of a micro-batch's rows and of where in them completions are scored; the last two where a row holds
# several sequences.
_TOKENS = ("input_ids", "attention_mask", "score_positions", "position_ids", "segments")

# A micro-batch ends before a pair whose rows are shorter than this share of its longest ones.
_FILLED = 0.8


@dataclass(frozen=True)
class Batching:
    """The collator of a training run: cached pairs in, a list of micro-batches out.

    How pairs are cut up changes memory and speed, not the loss of a step nor its gradients.
    """

    batch_tokens: int | None = None
    """Tokens of a micro-batch at most, padding included; a pair that has more goes alone."""
    share: bool = False
    """Whether a pair's prompt is scored once."""
    pack: bool = False
    """Whether a micro-batch is one row that holds its pairs one after another."""
    longest: int | None = None
    """Most tokens of a pair that shares its prompt, or of a packed sequence: the window of the model's
    attention. A longer one gets rows of its own. None: any."""
    least_tokens: int | None = None
    """Tokens, padding included, from which on a micro-batch is cut so that little is padding; None: never."""
    multiple: int = 1
    """What the length of a packed row is padded to a multiple of."""
    whole: bool = False
    """Whether the loss of a pair depends on the others of the batch, so that nothing is cut."""

    def __call__(self, records: Sequence[ScoredPair]) -> list[MicroBatch]:
        """Micro-batches, as :func:`~tdpo.core.training.data.collate` makes them, that hold all the pairs."""
        fits = [self._fits(record.pair) for record in records]
        if self.whole and not all(fits):
            fits = [False] * len(fits)
        joint = [record for record, fit in zip(records, fits, strict=True) if fit]
        apart = [record for record, fit in zip(records, fits, strict=True) if not fit]
        batch = [collate(group) for group in self._rows(apart, 2, separate_width)]
        if self.pack:
            packed = partial(lay_out_packed, share=self.share, multiple=self.multiple)
            return batch + [collate(group, packed) for group in self._bins(joint)]
        return batch + [collate(group, lay_out_shared) for group in self._rows(joint, 1, shared_width)]

    def _fits(self, pair: Pair) -> bool:
        width = shared_width(pair) if self.share else separate_width(pair)
        return (self.share or self.pack) and (self.longest is None or width <= self.longest)

    def _rows(
        self, records: list[ScoredPair], rows: int, width: Callable[[Pair], int]
    ) -> Iterator[list[ScoredPair]]:
        """Groups of pairs that take ``rows`` rows each, as wide as the widest: longest first."""
        if self.whole:
            yield from [records] * bool(records)
            return
        tokens = {id(record): rows * width(record.pair) for record in records}
        waiting = sorted(records, key=lambda record: tokens[id(record)], reverse=True)
        while waiting:
            longest = tokens[id(waiting[0])]
            most = len(waiting)
            if self.batch_tokens is not None:
                most = min(most, max(1, self.batch_tokens // longest))
            if self.least_tokens is not None:
                least = max(1, -(-self.least_tokens // longest))
                short = (n for n in range(least, most) if tokens[id(waiting[n])] < _FILLED * longest)
                most = next(short, most)
            yield waiting[:most]
            waiting = waiting[most:]

    def _bins(self, records: list[ScoredPair]) -> Iterator[list[ScoredPair]]:
        """Groups whose tokens fit a packed row: each pair, longest first, goes into the first with room."""
        if self.whole or self.batch_tokens is None:
            yield from [records] * bool(records)
            return
        limit = max(self.multiple, self.batch_tokens // self.multiple * self.multiple)
        bins: list[tuple[list[ScoredPair], int]] = []
        for record in sorted(records, key=lambda record: self._packed(record.pair), reverse=True):
            size = self._packed(record.pair)
            place = next((i for i, (_, used) in enumerate(bins) if used + size <= limit), None)
            if place is None:
                bins.append(([record], size))
            else:
                bins[place][0].append(record)
                bins[place] = bins[place][0], bins[place][1] + size
        yield from (group for group, _ in bins)

    def _packed(self, pair: Pair) -> int:
        return shared_width(pair) + (0 if self.share else len(pair.prompt_ids))


def pairs_in(batch: Sequence[MicroBatch]) -> int:
    """Pairs of a batch's micro-batches."""
    return sum(len(micro["lengths"]) // 2 for micro in batch)


def tokens_of(micro: MicroBatch) -> MicroBatch:
    """What a scored forward pass is given of a micro-batch, beside the ids to score."""
    return {name: micro[name] for name in _TOKENS if name in micro}
