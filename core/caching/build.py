"""Stage one: run the reference once over preference pairs and write what it said to a cache."""

import os
from pathlib import Path
from typing import Any

from ...cache.layout import OPTIONS_NAME
from ...cache.reader import CacheReader, open_cache
from ...cache.writer import CacheWriter
from ..config import BuildConfig, as_yaml, build_config
from ..data.spool import check_skipped
from ..quiet import quiet_libraries
from .identity import build_identity, build_provenance
from .reference import open_scorer
from .request import open_request, tokenise
from .shards import score_shards


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
    request = open_request(config, in_memory)
    with tokenise(request, quiet=quiet) as spool:
        check_skipped(spool, config.max_skipped)
        identity = build_identity(request)
        with CacheWriter(
            config.out,
            identity,
            build_provenance(request),
            source_rows=spool.source_rows,
            shard_rows=config.shard_rows,
            overwrite=config.overwrite,
        ) as writer:
            finished = writer.finished
            waiting = [i for i in range(writer.shards) if i not in finished]
            if waiting:
                with quiet_libraries():
                    score_shards(open_scorer(request, identity), spool, writer, waiting, quiet)
            writer.finish()
            (Path(config.out) / OPTIONS_NAME).write_text(as_yaml(build=config), encoding="utf-8")
    return open_cache(config.out)
