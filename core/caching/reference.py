"""The reference of a build, loaded and ready to score."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...cache.schema import HEAD_NAME
from ...cache.writer import CacheWriter
from ..adapters import find_adapter, require
from ..config.build import BuildConfig
from ..errors import ModelError
from ..models import ModelSource, find_model, load_model

if TYPE_CHECKING:
    from ..scoring.scorer import ReferenceScorer


def find_ref(config: BuildConfig, option: str = "--ref") -> ModelSource:
    """The reference of a build as its options name it: model, adapter, quantisation.

    ``option`` is where the model was named, for messages.

    Raises:
        ModelError: it cannot be found, or a package that it takes is not installed.
    """
    source = find_model(config.ref, config.revision, option=option)
    if config.ref_quantization is not None:
        require("bitsandbytes", "quantization", f"--ref-quantization {config.ref_quantization}")
    if config.ref_adapter is not None:
        require("peft", "peft", f"--ref-adapter {config.ref_adapter}")
    return replace(
        source,
        adapter=None if config.ref_adapter is None else find_adapter(config.ref_adapter),
        quantization=config.ref_quantization,
        device_map=config.device_map,
    )


def open_scorer(config: BuildConfig, source: ModelSource, identity: dict[str, Any]) -> "ReferenceScorer":
    """Load the reference in the precision that ``identity`` names.

    Raises:
        ModelError: it does not load, or its logits are not what its configuration says.
    """
    statistics = identity["statistics"]
    model = load_model(source, dtype=identity["reference"]["dtype"], attention=config.attention)
    scorer = make_scorer(config, model, statistics)
    if "hidden" in statistics and scorer.head.weight.shape[1] != statistics["hidden_size"]:
        raise ModelError(
            f"--ref {config.ref}: its output embedding takes {scorer.head.weight.shape[1]} numbers but "
            f"config.json says {statistics['hidden_size']}; its hidden states cannot be cached, use another "
            "--distribution"
        )
    if scorer.vocab_size != statistics["vocab_size"]:
        raise ModelError(
            f"--ref {config.ref}: its output embedding has {scorer.vocab_size} rows but config.json says "
            f"vocab_size={statistics['vocab_size']}; save the model again with the right configuration"
        )
    return scorer


def make_scorer(config: BuildConfig, model: Any, statistics: dict[str, Any]) -> "ReferenceScorer":
    """The scorer of the ``statistics`` of an identity with a model that is loaded."""
    from ..scoring.scorer import ReferenceScorer

    return ReferenceScorer(
        model,
        statistics["head"],
        statistics["tail"],
        statistics["seed"],
        config.batch_tokens,
        head_mass=statistics["head_mass"],
        tail_mass=statistics["tail_mass"],
        hidden=statistics.get("hidden"),
        prompt_sharing=config.prompt_sharing,
    )


def store_head(scorer: "ReferenceScorer", writer: CacheWriter) -> None:
    """Write the reference's output head beside the shards, where they need it and it is not there, whole."""
    from ..scoring.head_file import write_head

    if HEAD_NAME in writer.lacking_files:
        writer.write_file(HEAD_NAME, lambda file: write_head(scorer.head, file))
