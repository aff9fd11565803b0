"""What a fit is given, checked against each other before any model is loaded."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..cache.manifest import identity_differences
from ..cache.reader import CacheReader, open_cache
from .config.fit import FitConfig
from .errors import CacheError, ModelError
from .models import (
    ModelSource,
    find_model,
    find_reference,
    first_difference,
    load_tokenizer,
    tokenizer_identity,
)

if TYPE_CHECKING:
    from .objective import Objective

# What the cache must hold for each statistic that an objective may need; None: the policy's forward gives it.
FROM_CACHE: dict[str, str | None] = {
    "forward_kl": "dist",
    "reverse_kl": "whole",
    "ref_entropy": "ref_entropy",
    "entropy": None,
    "log_collision": None,
}

_WORDS = {
    "dist": "sample of the reference's distributions",
    "whole": "whole distributions of the reference",
    "ref_entropy": "entropies of the reference",
}
_OPTIONS = {"dist": " --head 8 --tail 8", "whole": " --distribution exact", "ref_entropy": ""}
_ADD = {
    "dist": ", or add one to it: tdpo cache add DIR --name sample --head 8 --tail 8",
    "whole": "",
    "ref_entropy": ", or add them to it: tdpo cache add DIR --name entropies --entropy",
}


def check_needs(config: FitConfig, objective: "Objective", reader: CacheReader) -> None:
    """Compare what the objective needs with what the cache holds, before any model is opened.

    Raises:
        CacheError: something is missing; says how to build or to add it.
    """
    # Other names were found among the added scores when those were joined.
    for name in sorted(objective.needs & FROM_CACHE.keys()):
        column = FROM_CACHE[name]
        if column is None or _holds(reader, column):
            continue
        lacking = f"no {_WORDS[column]}, which --plugin {config.plugin} needs"
        if config.reference is not None:
            raise CacheError(
                f"--reference {config.reference}: these scores of {config.cache} hold {lacking}; add ones "
                "that do: tdpo cache add DIR --name NAME --ref MODEL --head 8 --tail 8 --entropy"
            )
        raise CacheError(
            f"--cache {config.cache} holds {lacking}; build one that does: tdpo cache build --ref MODEL"
            f"{_OPTIONS[column]} --out DIR{_ADD[column]}"
        )


def _holds(reader: CacheReader, column: str) -> bool:
    if column in ("dist", "whole") and reader.cached.whole:
        return True
    return column in reader.statistics


def statistics_to_read(objective: "Objective", reader: CacheReader) -> frozenset[str]:
    """What a fit reads of the cache: all but whole distributions that no one needs, which are large."""
    cached = reader.cached
    names: frozenset[str] = reader.statistics
    if not cached.whole or objective.needs & {"forward_kl", "reverse_kl"}:
        # Hidden states say all that a sample beside them could.
        return names - {"dist"} if "ref_hidden" in names else names
    return names - ({"dist"} if cached.full else {"ref_hidden"})


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
    """The model to start from: the one given, or the cache's reference, also beside the cache's folder.

    The adapter of a reference is merged into the policy.

    Raises:
        ModelError: it cannot be opened, or is not what the reference computed because that was quantised.
    """
    if config.model is not None:
        return find_model(config.model, option="--model")
    source = find_reference(reader.manifest, config.cache, option="--model")
    if source.quantization is not None and not config.other_start:
        raise ModelError(
            f"--cache {config.cache} was built from {source.name} in {source.quantization}; the policy "
            "starts from the model in full, away from that: pass --other-start if it is meant to, or give "
            "--model"
        )
    return replace(source, quantization=None)


def check_model(model: ModelSource, tokenizer: Any, reader: CacheReader, *, option: str) -> None:
    """Refuse a model, named by ``option``, whose tokenizer or vocabulary is not the cache's.

    Raises:
        ModelError: says where they differ.
    """
    cached = reader.identity["tokenizer"]
    ours = tokenizer_identity(tokenizer)
    if ours["vocabulary_sha256"] != cached["vocabulary_sha256"]:
        where = _where_tokenizers_differ(tokenizer, reader)
        sizes = f"{cached['vocabulary_size']} tokens there, {ours['vocabulary_size']} here"
        raise ModelError(
            f"{option} {model.name}: its tokenizer is not the one the cache was built with "
            f"({where or sizes}); token ids would mean other words: use a model with the cache's tokenizer, "
            "or build a cache for this one"
        )
    if ours["rules_sha256"] != cached["rules_sha256"]:
        raise ModelError(
            f"{option} {model.name}: its tokenizer has the cache's vocabulary but splits text otherwise "
            "(merges, normaliser or special-token rules differ); use the cache's tokenizer, or build a cache "
            "for this one"
        )
    vocab_size = model.config.get_text_config().vocab_size
    if vocab_size != reader.vocab_size:
        raise ModelError(
            f"{option} {model.name}: has {vocab_size} logits where the cache's reference has "
            f"{reader.vocab_size}; resize its embeddings or build a cache for this model"
        )


def _where_tokenizers_differ(tokenizer: Any, reader: CacheReader) -> str | None:
    """The first differing token, where the reference's own tokenizer is still at hand."""
    try:
        source = find_reference(reader.manifest, reader.location, option="--model")
        return first_difference(load_tokenizer(source, option="--model"), tokenizer)
    except ModelError:
        return None
