"""Stage one: run the reference once over preference pairs and write what it said to a cache."""

import datetime
import os
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..cache.layout import OPTIONS_NAME
from ..cache.manifest import Shard
from ..cache.pairs import Pair, ScoredPair
from ..cache.reader import CacheReader, open_cache
from ..cache.writer import CacheWriter
from .config import BuildConfig, as_yaml, build_config
from .data.pairing import PairMaker
from .data.source import Source, open_source
from .data.spool import PairSpool, check_skipped, spool_pairs
from .errors import ConfigError, ModelError
from .models import ModelSource, find_model, load_model, load_tokenizer, tokenizer_identity
from .progress import Progress
from .quiet import quiet_libraries


def build_cache(
    ref: str | os.PathLike[str] | None = None,
    dataset: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **options: Any,
) -> CacheReader:
    """Run the reference once over preference pairs; what ``tdpo cache build`` does.

    The same call resumes a build that was cut off; on a finished cache it does nothing.

    Args:
        ref: reference model, a folder or a hub name.
        dataset: preference data: a file, folder, glob or hub name, or an in-memory ``datasets.Dataset``.
        out: the cache's folder.
        config: a ``tdpo.yaml`` whose ``build`` section holds options that are not given here.
        quiet: show no progress.
        options: any other field of :class:`~tdpo.core.config.BuildConfig`.

    Returns:
        The finished cache, opened.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = {
        **options,
        **{k: v for k, v in (("ref", ref), ("dataset", dataset), ("out", out)) if v is not None},
    }
    in_memory = given.get("dataset")
    if in_memory is not None and not isinstance(in_memory, str | os.PathLike):
        given["dataset"] = "in memory"
    else:
        in_memory = None
    return run_build(build_config(given, config), in_memory, quiet=quiet)


def run_build(config: BuildConfig, in_memory: Any = None, *, quiet: bool = False) -> CacheReader:
    """Build the cache that ``config`` describes. Raises as :func:`build_cache`."""
    source = open_source(
        config.dataset if in_memory is None else in_memory,
        split=config.split,
        config_name=config.subset,
        revision=config.data_revision,
        column_map=config.column_map or None,
        limit=config.limit,
    )
    model = find_model(config.ref, config.revision, option="--ref")
    tokenizer = load_tokenizer(model, option="--ref")
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    maker = PairMaker(
        tokenizer,
        source.form,
        max_length=config.max_length or model.max_length,
        truncation=config.truncation,
        truncate=config.truncate,
    )
    identity = build_identity(config, source, model, tokenizer)
    with _tokenise(config, source, maker, quiet) as spool:
        check_skipped(spool, config.max_skipped)
        with CacheWriter(
            config.out,
            identity,
            build_provenance(config, source),
            source_rows=len(source),
            shard_rows=config.shard_rows,
            overwrite=config.overwrite,
        ) as writer:
            finished = writer.finished
            waiting = [i for i in range(writer.shards) if i not in finished]
            if waiting:
                with quiet_libraries():
                    _score_shards(config, identity, model, spool, writer, waiting, quiet)
            writer.finish()
            (Path(config.out) / OPTIONS_NAME).write_text(as_yaml(build=config), encoding="utf-8")
    return open_cache(config.out)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: cannot be read ({error}); give a text file") from error


def _tokenise(config: BuildConfig, source: Source, maker: PairMaker, quiet: bool) -> PairSpool:
    with Progress("tokenising", len(source), "rows", quiet=quiet) as progress:
        return spool_pairs(source, maker, window=config.shard_rows, progress=progress.reach)


def build_identity(config: BuildConfig, source: Source, model: ModelSource, tokenizer: Any) -> dict[str, Any]:
    """What is scored, provably: a cache with the same identity holds the same numbers."""
    vocab_size = model.config.get_text_config().vocab_size
    head = min(config.head, vocab_size)
    return {
        "reference": {
            **model.identity(),
            "dtype": _resolved_dtype(config.dtype, model.config),
            "attention": config.attention or "auto",
        },
        "tokenizer": tokenizer_identity(tokenizer),
        "data": _data_identity(source),
        "limits": {
            "max_length": config.max_length or model.max_length,
            "truncation": config.truncation,
            "truncate": config.truncate,
        },
        "statistics": {
            "entropy": True,
            "head": head,
            # With the whole vocabulary in the head there is no rest to draw from.
            "tail": 0 if head == vocab_size else config.tail,
            "seed": config.seed,
            "vocab_size": vocab_size,
        },
        "layout": "separate",
    }


def _data_identity(source: Source) -> dict[str, Any]:
    """The data by content; the path it was given by is provenance, and may change."""
    return {k: v for k, v in source.identity.items() if k != "source" or "files" not in source.identity}


def build_provenance(config: BuildConfig, source: Source) -> dict[str, Any]:
    """Who made the cache, when and with what; two caches may differ here and hold the same."""
    from importlib.metadata import version

    packages = ("tdpo", "torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy")
    return {
        "reference": str(config.ref),
        "dataset": str(config.dataset),
        "form": source.form,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _resolved_dtype(asked: str, model_config: Any) -> str:
    if asked != "auto":
        return asked
    stored = getattr(model_config, "dtype", None)
    return str(stored).removeprefix("torch.") if stored is not None else "float32"


def _score_shards(
    config: BuildConfig,
    identity: dict[str, Any],
    source: ModelSource,
    spool: PairSpool,
    writer: CacheWriter,
    waiting: list[int],
    quiet: bool,
) -> None:
    """Score the shards that are not there yet; each is written while the next is scored."""
    from .scoring.scorer import ReferenceScorer

    model = load_model(source, dtype=identity["reference"]["dtype"], attention=config.attention)
    statistics = identity["statistics"]
    scorer = ReferenceScorer(
        model, statistics["head"], statistics["tail"], statistics["seed"], config.batch_tokens
    )
    if scorer.vocab_size != statistics["vocab_size"]:
        raise ModelError(
            f"--ref {config.ref}: its output embedding has {scorer.vocab_size} rows but config.json says "
            f"vocab_size={statistics['vocab_size']}; save the model again with the right configuration"
        )
    pending: Future[Shard] | None = None
    with (
        ThreadPoolExecutor(1, thread_name_prefix="tdpo-writer") as background,
        Progress("scoring", sum(spool.scored_tokens(i) for i in waiting), "tokens", quiet=quiet) as progress,
    ):
        try:
            for index in waiting:
                pairs, skipped = spool.window(index)
                scored: list[ScoredPair] = []
                for batch, result in scorer.score(pairs):
                    scored += result
                    progress.advance(sum(_tokens(pair) for pair in batch))
                if pending is not None:
                    pending.result()
                pending = background.submit(writer.write_shard, index, scored, skipped)
        finally:
            # Whatever stopped the scoring, a shard that is being written is finished and kept.
            if pending is not None:
                pending.result()


def _tokens(pair: Pair) -> int:
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
