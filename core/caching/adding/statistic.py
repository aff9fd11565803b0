"""Statistics that plugins define, run over a cache in length-sorted batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ....cache.pairs import Pair
from ....cache.reader import CacheReader
from ....cache.scores.sets import ScoreSet, check_columns
from ....cache.scores.writer import ScoreWriter
from ...checks import check_model
from ...config.build import AddConfig
from ...errors import ModelError, PluginError
from ...models import find_reference
from ...options import construct
from ...registry import statistic_class, statistics
from ...tokenizers import load_tokenizer
from .models import ScoringModel, own_reference, scoring_model
from .shards import Values, all_pairs, fill

if TYPE_CHECKING:
    from ...statistic import Statistic

_BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}


class AddedStatistic:
    """The columns of a registered :class:`~tdpo.core.statistic.Statistic`."""

    def __init__(self, config: AddConfig, reader: CacheReader):
        name = str(config.statistic)
        cls = statistic_class(name)
        self._config, self._reader = config, reader
        self.statistic: Statistic = construct(cls, config.set, where=f"{name}: ")
        self.registered = statistics()[name]
        columns = dict(self.statistic.columns)
        try:
            check_columns(columns)
        except ValueError as error:
            raise PluginError(
                f"statistic {name!r} of {self.registered.distribution}: {error}; update "
                f"{self.registered.distribution}"
            ) from error
        self.model: ScoringModel | None = None
        self.tokenizer: Any = None
        if self.statistic.needs_tokenizer:
            source = find_reference(reader.manifest, reader.location, option="--ref", name=config.ref)
            self.tokenizer = load_tokenizer(source, option="--ref")
            check_model(source, self.tokenizer, reader, option="--ref")
        if self.statistic.needs_model:
            self.model = (
                own_reference(config, reader)
                if config.ref is None
                else scoring_model(config, config.ref, "--ref", reader)
            )
        identity = {} if self.model is None else {"reference": self.model.identity}
        self.asked = ScoreSet(
            "statistic",
            {
                **self.statistic.identity(),
                **identity,
                "statistic": name,
                "options": asdict(self.statistic),
            },
            {
                **({} if self.model is None else {"reference": self.model.name}),
                "target": self.registered.target,
                "distribution": self.registered.distribution,
            },
            columns,
        )

    def check(self) -> None:
        """Refuse pairs that the model is too short for. Raises ModelError."""
        if self.model is not None:
            self.model.check_lengths(all_pairs(self._reader))

    def run(self, provenance: dict[str, Any], quiet: bool) -> None:
        """Compute and write, shard by shard."""
        config = self._config
        self.asked.provenance |= provenance
        with ScoreWriter(config.cache, config.name, self.asked, overwrite=config.overwrite) as writer:
            if writer.waiting:
                fill(writer, self._reader, writer.waiting, self._prepare(), str(config.statistic), quiet)
            writer.finish()

    def _prepare(self) -> Callable[[Sequence[Pair], Callable[[int], None]], Values]:
        model, tokenizer, device = None, self.tokenizer, "cpu"
        if self.model is not None:
            scorer = self.model.open()
            model, device = scorer.model, scorer.model.device.type
            tokenizer = load_tokenizer(self.model.source, option="--ref")
        budget = self._config.batch_tokens or _BATCH_TOKENS.get(device, _BATCH_TOKENS["cuda"])
        return lambda pairs, advance: self._compute(model, tokenizer, pairs, advance, budget)

    def _compute(
        self,
        model: Any,
        tokenizer: Any,
        pairs: Sequence[Pair],
        advance: Callable[[int], None],
        budget: int,
    ) -> Values:
        """Every column's values, in the order of ``pairs``."""
        import torch

        found: dict[str, dict[int, Any]] = {}
        waiting = sorted(pairs, key=_cost, reverse=True)
        while waiting:
            batch = waiting[: max(1, budget // _cost(waiting[0]))]
            try:
                with torch.inference_mode():
                    values = self.statistic.compute(model, tokenizer, batch)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if len(batch) == 1:
                    raise ModelError(
                        f"row {batch[0].row} ({_cost(batch[0])} tokens) does not fit into memory; "
                        "build the cache with a lower --max-length"
                    ) from error
                budget = max(1, len(batch) // 2) * _cost(batch[0])
                torch.cuda.empty_cache()
                continue
            self._take(found, batch, values)
            waiting = waiting[len(batch) :]
            advance(sum(pair.completion_tokens for pair in batch))
        return {column: [rows[pair.row] for pair in pairs] for column, rows in found.items()}

    def _take(
        self, found: dict[str, dict[int, Any]], batch: Sequence[Pair], values: Mapping[str, Sequence[Any]]
    ) -> None:
        """Move a batch's values off the device, by column and row."""
        for column, each in values.items():
            if len(each) != len(batch):
                raise PluginError(
                    f"statistic {self._config.statistic!r} of {self.registered.distribution} returns "
                    f"{len(each)} values of {column} for {len(batch)} pairs; update "
                    f"{self.registered.distribution}"
                )
            rows = found.setdefault(column, {})
            for pair, value in zip(batch, each, strict=True):
                rows[pair.row] = _as_array(value)


def _cost(pair: Pair) -> int:
    """Tokens of a pair's two rows, padding included."""
    return 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)))


def _as_array(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    # NumPy has no bfloat16.
    return (value.float() if value.is_floating_point() else value).cpu().numpy()
