"""Stage one: run the reference once over preference pairs and write what it said to a cache."""

import os
from typing import Any

from ...cache.ledger import Part
from ...cache.reader import CacheReader, open_cache
from ...cache.writer import CacheWriter
from ..config.build import BuildConfig
from ..config.file import as_yaml
from ..data.spool import check_skipped
from ..errors import ConfigError
from ..launched import Place
from ..progress import Progress
from ..quiet import quiet_libraries
from ..randomness import keep_random_states
from .identity import build_identity, build_provenance
from .processes.follower import follow
from .processes.leader import Leader
from .processes.meeting import own_share
from .reference import open_scorer, store_head
from .request import open_request, resolve_options, tokenise
from .shards import Waiting, score_shards


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
        dataset: preference data: a file, folder, glob or hub name, a list of such, or the data itself: a
            ``datasets.Dataset``, an ``IterableDataset``, or dicts in a list or any iterable.
        out: the cache's folder.
        config: a ``tdpo.yaml`` whose ``build`` section holds options that are not given here.
        quiet: show no progress.
        options: any other field of :class:`~tdpo.core.config.build.BuildConfig`.

    Returns:
        The finished cache, opened.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    resolved, in_memory = resolve_options({"ref": ref, "dataset": dataset, "out": out, **options}, config)
    return run_build(resolved, in_memory, quiet=quiet)


@keep_random_states()
def run_build(config: BuildConfig, in_memory: Any = None, *, quiet: bool = False) -> CacheReader:
    """Build the cache that ``config`` describes. Raises as :func:`build_cache`.

    Under a launcher every process calls this: the first leads, the others score what it hands them.
    """
    place = Place.here()
    _check_processes(config, place)
    if place.rank > 0:
        follow(place)
    else:
        _lead(config, place, in_memory, quiet=quiet)
    return open_cache(config.out)


def _lead(config: BuildConfig, place: Place, in_memory: Any, *, quiet: bool) -> None:
    part = _part(config)
    with Leader(config, place) as leader:
        request = open_request(config, in_memory)
        with tokenise(request, quiet=quiet) as spool:
            check_skipped(spool, config.max_skipped)
            _check_part(part, len(spool))
            identity = build_identity(request, spool)
            with CacheWriter(
                config.out,
                identity,
                build_provenance(request),
                source_rows=spool.source_rows,
                shard_rows=request.shard_rows,
                part=part,
                overwrite=config.overwrite,
            ) as writer:
                if writer.waiting or writer.lacking_files:
                    waiting = Waiting(spool, writer.waiting)
                    with (
                        quiet_libraries(),
                        Progress("scoring", waiting.tokens, "tokens", quiet=quiet) as progress,
                        leader.leading(writer.manifest, waiting, writer.enter, progress.advance),
                        own_share(place, config.num_processes),
                    ):
                        scorer = open_scorer(config, request.model, identity)
                        if scorer.note is not None:
                            progress.note(scorer.note)
                        store_head(scorer, writer)
                        score_shards(scorer, waiting, writer.write_shard, leader.advance)
                writer.finish()
                writer.write_options(as_yaml(build=config))
        leader.finish()


def _check_processes(config: BuildConfig, place: Place) -> None:
    if place.size > 1 and config.num_processes > 1:
        raise ConfigError(
            f"--num-processes {config.num_processes}: the launcher has started {place.size} processes; leave "
            "it out"
        )
    if config.device_map is not None and max(config.num_processes, place.on_this_machine) > 1:
        raise ConfigError(
            f"--device-map {config.device_map} spreads one reference over all GPUs of a machine: start one "
            "process a machine"
        )


def _part(config: BuildConfig) -> Part | None:
    try:
        return None if config.part is None else Part.parse(config.part)
    except ValueError:
        raise ConfigError(
            f"--part {config.part}: give i/n with whole numbers from 1/n to n/n, such as 2/5"
        ) from None


def _check_part(part: Part | None, shards: int) -> None:
    if part is not None and part.of > shards:
        raise ConfigError(
            f"--part {part}: the data makes {shards} {'shard' if shards == 1 else 'shards'}, fewer than "
            f"{part.of} parts; make fewer parts, or smaller shards with --shard-rows"
        )
