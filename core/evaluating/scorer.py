"""Cached pairs scored by a finished policy, in the same way as in training."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ...cache.pairs import Pair
from ..checks import check_model
from ..models import ModelSource, find_start, load_model
from ..objective import Completions
from ..runs.folder import RunFolder, is_run
from ..scoring.forward import enable_scoring
from ..scoring.placement import place
from ..tokenizers import load_tokenizer
from ..training.batches import Batching, MicroBatch
from ..training.data import decode_pair_ids
from ..training.divergences import ExactDivergences
from ..training.sides import policy_sides


@dataclass(frozen=True)
class ScoredBatch:
    """Pairs with both sides as a policy and the reference see them; values without gradient, on the CPU."""

    pairs: list[Pair]
    chosen: Completions
    """[B, T]."""
    rejected: Completions
    """[B, T]."""


class PairScorer:
    """Scores pairs of a cache with a policy.

    Args:
        model: the policy, on its device; its ``forward`` is replaced.
        reader: of the cache, with the scores that are read beside it.
        needs: statistics read beyond those always there, as in an objective's ``needs``. Always there
            are logp, ref_logp, the policy's entropy, and what the cache gives of the divergences and the
            reference's entropy.
        estimator: of the forward KL from a sample.
        batch_tokens: tokens of a forward pass at most, padding included.
        whole: whether the pairs that are read together stay in one batch, however many tokens they have: for
            an objective whose loss of a pair depends on the others.

    Raises:
        ModelError: the model's head cannot be scored.
    """

    def __init__(
        self,
        model: Any,
        reader: Any,
        *,
        needs: frozenset[str] = frozenset(),
        estimator: str = "fitted",
        batch_tokens: int = 8192,
        whole: bool = False,
    ):
        self.model, self.reader, self.needs, self.estimator = model, reader, needs, estimator
        self.device = next(model.parameters()).device
        self.exact = ExactDivergences.of(reader, frozenset({"forward_kl", "reverse_kl"}), self.device)
        enable_scoring(model, self.exact.head)
        self._batching = Batching(batch_tokens, least_tokens=batch_tokens, whole=whole)

    def score(self, rows: Collection[int], pairs_at_a_time: int = 32) -> Iterator[ScoredBatch]:
        """The pairs at these row numbers, in batches; those of a batch may come in another order."""
        for batch, pairs in self.batches(rows, pairs_at_a_time):
            yield self._scored(batch, pairs)

    def batches(
        self, rows: Collection[int], pairs_at_a_time: int = 32
    ) -> Iterator[tuple[MicroBatch, list[Pair]]]:
        """What :meth:`score` gives the model, on its device, and the pairs that are in it."""
        asked = list(rows)
        for start in range(0, len(asked), pairs_at_a_time):
            records = self.reader.read(asked[start : start + pairs_at_a_time])
            by_id = {record.pair.pair_id: record.pair for record in records}
            for batch in self._batching(records):
                placed = {name: value.to(self.device) for name, value in batch.items()}
                yield placed, [by_id[one] for one in decode_pair_ids(batch["pair_ids"])]

    @torch.no_grad()
    def _scored(self, batch: MicroBatch, pairs: list[Pair]) -> ScoredBatch:
        chosen, rejected = policy_sides(
            self.model,
            batch,
            self.reader.identity["statistics"],
            self.exact,
            needs=self.needs,
            estimator=self.estimator,
        )
        return ScoredBatch(pairs, _on_cpu(chosen), _on_cpu(rejected))


def open_policy_for(reader: Any, name: str | Path, *, option: str, dtype: str = "auto") -> tuple[Any, Any]:
    """A trained policy and its tokenizer, ready to score pairs of ``reader``, on the GPU where there is one.

    Args:
        reader: of the cache.
        name: a run's folder, a model's or an adapter's, or a hub name.
        option: where the name came from, for messages.
        dtype: of its parameters, by torch's name; as saved by default.

    Raises:
        ModelError: it cannot be opened, or its tokenizer is not the cache's.
    """
    source = _as_trained(find_start(str(name), option=option), Path(name))
    tokenizer = load_tokenizer(source, option=option)
    check_model(source, tokenizer, reader, option=option)
    model = load_model(
        source, dtype=dtype, quantization_option=f"{option} {name}: trained with --quantization"
    )
    place(model)
    return model, tokenizer


def _as_trained(source: ModelSource, folder: Path) -> ModelSource:
    """A LoRA beside the base in as few bits as it was trained beside, for that is the policy."""
    runs = [one for one in (folder, folder.parent) if source.adapter is not None and is_run(one)]
    return replace(source, quantization=RunFolder.open(runs[0]).config.quantization) if runs else source


def _on_cpu(side: Completions) -> Completions:
    moved: dict[str, Any] = {
        f.name: value.cpu() for f in fields(side) if isinstance(value := getattr(side, f.name), torch.Tensor)
    }
    return replace(side, **moved, extra={name: value.cpu() for name, value in side.extra.items()})
