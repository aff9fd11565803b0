"""What a fit is given, checked against each other before any model is loaded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..cache.lengths import pair_lengths
from ..cache.manifest import identity_differences
from ..cache.reader import CacheReader, open_cache
from .config.evaluation import eval_caches
from .config.fit import FitConfig
from .errors import CacheError, ConfigError, ModelError
from .models import ModelSource, find_reference, find_start
from .tokenizers import first_difference, load_tokenizer, tokenizer_identity

if TYPE_CHECKING:
    from .objective import Objective

# What the cache must hold for each statistic that an objective may need; None: the policy's forward gives it,
# or the trainer.
FROM_CACHE: dict[str, str | None] = {
    "forward_kl": "dist",
    "reverse_kl": "whole",
    "ref_entropy": "ref_entropy",
    "entropy": None,
    "log_collision": None,
    "draw_seed": None,
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
        lacking = f"no {_WORDS[column]}, which {config.objective_flags} needs"
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


def check_batch_level(config: FitConfig, objective: "Objective", arguments: Any) -> None:
    """Refuse to cut up an optimiser step's pairs where the loss of one depends on the others.

    Args:
        config: the fit's options.
        objective: the loss.
        arguments: transformers.TrainingArguments of ``config``.

    Raises:
        ConfigError: names the option, and what takes its place.
    """
    if not objective.batch_level:
        return
    accumulation: int = arguments.gradient_accumulation_steps
    for flag, value, given in (
        ("--gradient-accumulation", accumulation, accumulation > 1),
        ("--num-processes", config.num_processes, config.num_processes > 1),
        ("--batch-tokens", config.batch_tokens, config.batch_tokens is not None),
    ):
        if given:
            raise ConfigError(
                f"{flag} {value}: with {config.objective_flags} the loss of a pair depends on the "
                "others of the optimiser step, which must be one batch of one process: leave it out and give "
                "their number with --batch-size; --gradient-checkpointing and --lora save memory"
            )


def open_evaluations(config: FitConfig, reader: CacheReader) -> dict[str, CacheReader]:
    """The evaluation caches by their names, as :func:`~tdpo.core.config.evaluation.eval_caches` gives them.

    Raises:
        CacheError: one is no cache, or was built from another reference or with other statistics.
        ConfigError: two have the same name.
    """
    places = eval_caches(config.eval_cache)
    return {name: _open_evaluation(place, config, reader) for name, place in places.items()}


def _open_evaluation(place: str, config: FitConfig, reader: CacheReader) -> CacheReader:
    try:
        evaluation = open_cache(place)
    except CacheError as error:
        raise CacheError(f"--eval-cache: {error}") from error
    parts = ("reference", "tokenizer", "statistics")
    ours, theirs = ({part: r.identity.get(part) for part in parts} for r in (reader, evaluation))
    if differences := identity_differences(theirs, ours):
        keys = ", ".join(line.partition(":")[0] for line in differences)
        raise CacheError(
            f"--eval-cache {place} was built otherwise than --cache {config.cache} ({keys} "
            "differ); build both with the same reference and options"
        )
    return evaluation


def find_policy(config: FitConfig, reader: CacheReader, *, weights: bool = True) -> ModelSource:
    """The model to start from: the one given, or the cache's reference, also beside the cache's folder.

    The adapter of a reference is merged into the policy. A folder given as ``--model`` must hold weights,
    unless ``weights`` is False.

    Raises:
        ModelError: it cannot be opened, or is not what the reference computed because that was quantised.
    """
    if config.model is not None:
        return replace(find_start(config.model, weights=weights), quantization=config.quantization)
    source = find_reference(reader.manifest, config.cache, option="--model")
    if source.quantization not in (None, config.quantization) and not config.other_start:
        raise ModelError(
            f"--cache {config.cache} was built from {source.name} in {source.quantization}; the policy "
            f"starts from the model in {config.quantization or 'full'}, away from that: train a LoRA beside "
            f"what the reference was, --lora RANK --quantization {source.quantization}, or pass "
            "--other-start if it is meant to, or give --model"
        )
    return replace(source, quantization=config.quantization)


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


def check_positions(
    config: FitConfig, model: ModelSource, reader: CacheReader, evaluations: Mapping[str, CacheReader]
) -> None:
    """Refuse a training or evaluation cache with a sequence longer than the model's positions.

    Raises:
        ModelError: names the longest row, and what to do.
    """
    places = eval_caches(config.eval_cache)
    readers = {f"--cache {config.cache}": reader}
    readers |= {f"--eval-cache {places[name]}": one for name, one in evaluations.items()}
    if (limit := model.max_length) is None:
        return
    for cache, reader in readers.items():
        # What the build was limited to says enough of most caches, without reading their rows.
        built_for = reader.identity.get("limits", {}).get("max_length")
        if built_for is not None and built_for <= limit:
            continue
        lengths = pair_lengths(reader).sequence
        if len(lengths) and (longest := int(lengths.max())) > limit:
            too_long = int((lengths > limit).sum())
            raise ModelError(
                f"{cache}: row {int(lengths.argmax())} is a sequence of {longest:,} tokens and "
                f"{model.name} takes {limit:,}, which {too_long:,} of {len(lengths):,} pairs exceed; build a "
                f"cache for it with tdpo cache build --max-length {limit}, or start from a model that takes "
                "as many"
            )


def _where_tokenizers_differ(tokenizer: Any, reader: CacheReader) -> str | None:
    """The first differing token, where the reference's own tokenizer is still at hand."""
    try:
        source = find_reference(reader.manifest, reader.location, option="--model")
        return first_difference(load_tokenizer(source, option="--model"), tokenizer)
    except ModelError:
        return None
