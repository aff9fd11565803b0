"""Which statistics of the reference a build caches: from its options to ``identity["statistics"]``."""

from typing import Any

from ..config.build import BuildConfig
from ..errors import ConfigError
from ..models import ModelSource

FULL_LIMIT = 16_384
"""Largest V whose whole distribution is cached at every token; beyond, hidden states are smaller by far."""

# Entries of the head and draws where the options do not say.
_DEFAULT = {"none": (0, 0), "sparse": (8, 8), "exact": (0, 0)}


def statistics_identity(config: BuildConfig, model: ModelSource, ref_dtype: str) -> dict[str, Any]:
    """What is cached of the reference at each token, and from what it can be reproduced.

    Args:
        config: the build's options.
        model: the reference.
        ref_dtype: the precision it runs in.

    Raises:
        ConfigError: options that contradict each other, or a vocabulary too large to cache in full.
    """
    text = model.config.get_text_config()
    vocab_size: int = text.vocab_size
    head, tail = _entries(config, vocab_size)
    statistics = {
        "entropy": True,
        "head": head,
        "tail": tail,
        # No entries and all entries are as many as they are.
        "head_mass": 1.0 if head in (0, vocab_size) else config.head_mass,
        "tail_mass": config.tail_mass if tail else 0.0,
        "seed": config.seed,
        "vocab_size": vocab_size,
    }
    if config.distribution != "exact":
        return statistics
    lossless = "bfloat16" if ref_dtype == "bfloat16" else "float32"
    return statistics | {
        "hidden": lossless if config.hidden_dtype == "auto" else config.hidden_dtype,
        # OPT's smallest projects its hidden states down before its head.
        "hidden_size": getattr(text, "word_embed_proj_dim", None) or text.hidden_size,
    }


def _entries(config: BuildConfig, vocab_size: int) -> tuple[int, int]:
    if config.distribution in ("none", "full") and (config.head or config.tail):
        option = f"--head {config.head}" if config.head else f"--tail {config.tail}"
        cached = "none" if config.distribution == "none" else "all"
        raise ConfigError(
            f"{option} does not go with --distribution {config.distribution}, which caches {cached} of a "
            "distribution's entries; leave one of the two out"
        )
    if config.distribution == "full":
        if vocab_size > FULL_LIMIT:
            raise ConfigError(
                f"--distribution full: {config.ref} has a vocabulary of {vocab_size:,}, which would take "
                f"{6 * vocab_size / 1024:,.0f} KB a token (the largest cached in full is {FULL_LIMIT:,}); "
                "use --distribution exact"
            )
        return vocab_size, 0
    asked = zip((config.head, config.tail), _DEFAULT[config.distribution], strict=True)
    head, tail = (default if given is None else given for given, default in asked)
    # With the whole vocabulary in the head there is no rest to draw from.
    return (vocab_size, 0) if head >= vocab_size else (head, tail)


def shard_rows(config: BuildConfig, model: ModelSource) -> int:
    """Source rows of a shard: as asked for, or 1024, or as many as hold 256 MB of hidden states or log-probs.

    A shard is in memory while it is scored, at about a thousand completion tokens a row.
    """
    if config.shard_rows is not None:
        return config.shard_rows
    statistics = statistics_identity(config, model, "float32")
    values = statistics.get("hidden_size", 0) + 2 * (statistics["head"] + statistics["tail"])
    return max(1, min(1024, (256 << 20) // (4 * 1000 * max(1, values))))
