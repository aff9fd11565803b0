"""What a fit is given, checked against each other before any model is loaded."""

from typing import TYPE_CHECKING, Any

from ..cache.manifest import identity_differences
from ..cache.reader import CacheReader, open_cache
from .config import FitConfig
from .errors import CacheError, ConfigError, ModelError
from .models import (
    ModelSource,
    find_model,
    find_reference,
    first_difference,
    load_tokenizer,
    tokenizer_identity,
)
from .options import nearest

if TYPE_CHECKING:
    from .objective import Objective

# What the cache must hold for each statistic that an objective may need; None: the policy's forward gives it.
_FROM_CACHE: dict[str, str | None] = {
    "forward_kl": "dist",
    "ref_entropy": "ref_entropy",
    "entropy": None,
    "log_collision": None,
}

_WORDS = {"dist": "sample of the reference's distributions", "ref_entropy": "entropies of the reference"}


def check_needs(config: FitConfig, objective: "Objective", reader: CacheReader) -> None:
    """Compare what the objective needs with what the cache holds, before any model is opened.

    Raises:
        CacheError: something is missing; says how to build it.
        ConfigError: a statistic that no cache can hold yet.
    """
    for name in sorted(objective.needs):
        if name not in _FROM_CACHE:
            raise ConfigError(
                f"--plugin {config.plugin} needs the statistic {name!r}, which this version of tdpo does not "
                f"compute{nearest(name, _FROM_CACHE)}"
            )
        column = _FROM_CACHE[name]
        if column is not None and column not in reader.statistics:
            raise CacheError(
                f"--cache {config.cache} holds no {_WORDS[column]}, which --plugin {config.plugin} needs; "
                "build one that does: tdpo cache build --ref MODEL --head 8 --tail 8 --out DIR"
            )


def open_evaluation(config: FitConfig, reader: CacheReader) -> CacheReader | None:
    """The evaluation cache, where one is asked for.

    Raises:
        CacheError: it is no cache, or was built from another reference or with other statistics.
    """
    if config.eval_cache is None:
        return None
    try:
        evaluation = open_cache(config.eval_cache)
    except CacheError as error:
        raise CacheError(f"--eval-cache: {error}") from error
    parts = ("reference", "tokenizer", "statistics")
    ours, theirs = ({part: r.identity.get(part) for part in parts} for r in (reader, evaluation))
    if differences := identity_differences(theirs, ours):
        keys = ", ".join(line.partition(":")[0] for line in differences)
        raise CacheError(
            f"--eval-cache {config.eval_cache} was built otherwise than --cache {config.cache} ({keys} "
            "differ); build both with the same reference and options"
        )
    return evaluation


def find_policy(config: FitConfig, reader: CacheReader) -> ModelSource:
    """The model to start from: the one given, or the cache's reference, also beside the cache's folder."""
    if config.model is not None:
        return find_model(config.model, option="--model")
    return find_reference(reader.manifest, config.cache, option="--model")


def check_policy(policy: ModelSource, tokenizer: Any, reader: CacheReader) -> None:
    """Refuse a policy whose tokenizer or vocabulary is not the cache's.

    Raises:
        ModelError: says where they differ.
    """
    cached = reader.identity["tokenizer"]
    ours = tokenizer_identity(tokenizer)
    if ours["vocabulary_sha256"] != cached["vocabulary_sha256"]:
        where = _where_tokenizers_differ(tokenizer, reader)
        sizes = f"{cached['vocabulary_size']} tokens there, {ours['vocabulary_size']} here"
        raise ModelError(
            f"--model {policy.name}: its tokenizer is not the one the cache was built with "
            f"({where or sizes}); token ids would mean other words: use a policy with the cache's tokenizer, "
            "or build a cache for this one"
        )
    if ours["rules_sha256"] != cached["rules_sha256"]:
        raise ModelError(
            f"--model {policy.name}: its tokenizer has the cache's vocabulary but splits text otherwise "
            "(merges, normaliser or special-token rules differ); use the cache's tokenizer, or build a cache "
            "for this one"
        )
    vocab_size = policy.config.get_text_config().vocab_size
    if vocab_size != reader.vocab_size:
        raise ModelError(
            f"--model {policy.name}: has {vocab_size} logits where the cache's reference has "
            f"{reader.vocab_size}; resize its embeddings or build a cache for this model"
        )


def _where_tokenizers_differ(tokenizer: Any, reader: CacheReader) -> str | None:
    """The first differing token, where the reference's own tokenizer is still at hand."""
    try:
        source = find_reference(reader.manifest, reader.path, option="--model")
        return first_difference(load_tokenizer(source, option="--model"), tokenizer)
    except ModelError:
        return None
