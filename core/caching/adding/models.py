"""Models that score for added statistics: the cache's own reference, or another of the same vocabulary."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ....cache.pairs import Pair
from ....cache.reader import CacheReader
from ....cache.schema import CachedStatistics
from ...checks import check_model
from ...config.build import AddConfig, BuildConfig
from ...errors import ModelError
from ...models import ModelSource, find_reference
from ...tokenizers import load_tokenizer
from ..identity import reference_identity
from ..reference import find_ref, open_scorer

if TYPE_CHECKING:
    from ...scoring.scorer import ReferenceScorer


@dataclass(frozen=True)
class ScoringModel:
    """A model to score with, found and checked; its weights are not loaded yet."""

    source: ModelSource
    option: str
    """Where it was named, for messages."""
    identity: dict[str, Any]
    """Which model, provably, and its precision."""
    vocab_size: int
    own: bool
    """Whether it is the cache's reference, computing as it did for the cache."""
    config: BuildConfig
    """How it is loaded and how much it scores at a time."""

    @property
    def name(self) -> str:
        """A folder or a hub name."""
        return self.source.name

    def sampling(self, head: int, tail: int, seed: int, *, entropy: bool = False) -> CachedStatistics:
        """What is cached of its distributions: as many entries at every token."""
        whole = head >= self.vocab_size
        return CachedStatistics(
            entropy, min(head, self.vocab_size), 0 if whole else tail, seed, self.vocab_size
        )

    def open(self, statistics: CachedStatistics | None = None) -> "ReferenceScorer":
        """Load it, ready to score.

        Raises:
            ModelError: it does not load.
        """
        # Without hidden states there is no word of them, as in a build.
        wanted = {
            name: value
            for name, value in asdict(statistics or self.sampling(0, 0, 0)).items()
            if not name.startswith("hidden")
        }
        return open_scorer(self.config, self.source, {"reference": self.identity, "statistics": wanted})

    def check_lengths(self, pairs: Iterable[Pair]) -> None:
        """Refuse pairs that the model is too short for.

        Raises:
            ModelError: says how many, and how long the longest is.
        """
        limit = self.source.max_length
        if limit is None or self.own:
            return
        lengths = [
            (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)), pair.row)
            for pair in pairs
        ]
        over = [one for one in lengths if one[0] > limit]
        if over:
            longest, row = max(over)
            raise ModelError(
                f"{self.option} {self.name}: takes {limit} tokens, {len(over):,} of {len(lengths):,} pairs "
                f"are longer (row {row}: {longest}); use a model that takes more, or build the cache with "
                f"--max-length {limit}"
            )


def own_reference(config: AddConfig, reader: CacheReader) -> ScoringModel:
    """The cache's reference, where its manifest says that it is.

    Raises:
        ModelError: it cannot be found, or is no longer the model that the cache was built from.
    """
    source = find_reference(reader.manifest, reader.location, option="--ref")
    if differing := _differing(source, reader):
        raise ModelError(
            f"{source.name} is no longer the reference that {reader.location} was built from (its "
            f"{differing} differs): give the one it was built from with --ref"
        )
    return _own(config, source, reader)


def scoring_model(config: AddConfig, name: str, option: str, reader: CacheReader) -> ScoringModel:
    """The model ``name``, which must have the cache's tokenizer and vocabulary.

    Where it is the cache's own reference and no option says how to load it, it is loaded as it was then.

    Raises:
        ModelError: it cannot be used; says where tokenizer or vocabulary differ.
    """
    build = BuildConfig(
        ref=name, dataset=[], batch_tokens=config.batch_tokens, **{n: getattr(config, n) for n in _LOADING}
    )
    if option == "--ref" and all(getattr(config, n) == getattr(_DEFAULTS, n) for n in _LOADING):
        source = find_reference(reader.manifest, reader.location, option="--ref", name=name)
        if not _differing(source, reader):
            check_model(source, load_tokenizer(source, option=option), reader, option=option)
            return _own(config, source, reader)
    source = find_ref(build, option=option)
    check_model(source, load_tokenizer(source, option=option), reader, option=option)
    identity = reference_identity(build, source)
    return ScoringModel(source, option, identity, reader.vocab_size, own=False, config=build)


def _own(config: AddConfig, source: ModelSource, reader: CacheReader) -> ScoringModel:
    recorded = reader.identity["reference"]
    attention = recorded.get("attention")
    build = BuildConfig(
        ref=source.name,
        dataset=[],
        attention=None if attention == "auto" else attention,
        batch_tokens=config.batch_tokens,
        prompt_sharing="auto" if reader.identity.get("layout") == "shared" else "off",
    )
    source = replace(source, device_map=config.device_map)
    return ScoringModel(source, "--ref", recorded, reader.vocab_size, own=True, config=build)


# How a model is loaded; of the cache's own reference, its manifest says so.
_LOADING = ("revision", "ref_dtype", "ref_quantization", "ref_adapter", "device_map", "attention")
_DEFAULTS = AddConfig(name="")


def _differing(source: ModelSource, reader: CacheReader) -> str | None:
    """Which proof of a model differs from those of the cache's reference."""
    recorded = reader.identity["reference"]
    return next((key for key, value in source.identity().items() if recorded.get(key) != value), None)
