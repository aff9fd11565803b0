"""Another reference beside the cache's own, or a larger sample of the same one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ....cache.pairs import Pair
from ....cache.reader import CacheReader
from ....cache.scores.sets import ScoreColumn, ScoreSet
from ....cache.scores.writer import ScoreWriter
from ...config.build import AddConfig
from ...errors import ConfigError
from .models import own_reference, scoring_model
from .shards import Values, all_pairs, fill, score_in_order, side_values


class AddedReference:
    """What a reference says of the cache's pairs.

    Kind ``reference``: another model, its log-probs and, where asked for, its entropies and a sample of its
    distributions. Kind ``sample``: the cache's own, whose log-probs are there: entropies or a larger sample.
    """

    def __init__(self, config: AddConfig, reader: CacheReader):
        self._config, self._reader = config, reader
        self.model = (
            own_reference(config, reader)
            if config.ref is None
            else scoring_model(config, config.ref, "--ref", reader)
        )
        if self.model.own and not (config.head or config.tail or config.entropy):
            raise ConfigError(
                f"--ref {self.model.name} is the cache's own reference, whose log-probs it holds: ask for a "
                "larger sample (--head K --tail M), or give another model"
            )
        self.sampling = self.model.sampling(config.head, config.tail, config.seed, entropy=config.entropy)
        self.asked = ScoreSet(
            "sample" if self.model.own else "reference",
            {"reference": self.model.identity, "statistics": asdict(self.sampling)},
            {"reference": self.model.name, "adapter": config.ref_adapter},
            self._columns(),
        )

    def _columns(self) -> dict[str, ScoreColumn]:
        columns = {}
        if not self.model.own:
            columns["ref_logp"] = ScoreColumn(
                "token", doc="[T] log-probability of each completion token, in nats"
            )
        if self.sampling.entropy:
            columns["ref_entropy"] = ScoreColumn(
                "token", "float16", "[T] entropy of the full distribution at each token, in nats"
            )
        if n := self.sampling.entries:
            columns["dist_ids"] = ScoreColumn(
                "entries", "uint32", "[T * n] token ids of the entries at each token, head first", n
            )
            columns["dist_logp"] = ScoreColumn(
                "entries", "float16", "[T * n] log-probabilities of those entries, in nats", n
            )
        return columns

    def check(self) -> None:
        """Refuse pairs that the model is too short for. Raises ModelError."""
        self.model.check_lengths(all_pairs(self._reader))

    def run(self, provenance: dict[str, Any], quiet: bool) -> None:
        """Score and write, shard by shard."""
        config = self._config
        self.asked.provenance |= provenance
        with ScoreWriter(config.cache, config.name, self.asked, overwrite=config.overwrite) as writer:
            if writer.waiting:
                scorer = self.model.open(self.sampling)

                def score(pairs: Sequence[Pair], advance: Callable[[int], None]) -> Values:
                    scored = score_in_order(scorer, pairs, advance)
                    return side_values(scored, {name: name for name in self.asked.columns})

                fill(writer, self._reader, writer.waiting, score, "scoring", quiet)
            writer.finish()
