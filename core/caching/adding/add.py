"""Statistics added to a finished cache, beside its shards: what ``tdpo cache add`` does."""

import datetime
import os
from dataclasses import dataclass
from typing import Any, Protocol

from ....cache.manifest import read_manifest
from ....cache.reader import open_cache
from ....cache.scores.reader import ScoreReader, open_scores
from ....cache.scores.sets import ScoreSet, check_name
from ...config.build import AddConfig
from ...config.command import add_command
from ...errors import ConfigError
from ...options import construct
from ...quiet import quiet_libraries
from ...randomness import keep_random_states


class Addition(Protocol):
    """One kind of added statistics: what is asked for, checked, and how it is computed."""

    asked: ScoreSet

    def check(self) -> None:
        """Refuse what shows before a model is loaded: pairs that cannot be scored."""

    def run(self, provenance: dict[str, Any], quiet: bool) -> None:
        """Compute what is missing of the set, and write it."""


@keep_random_states()
def add_statistics(
    cache: str | os.PathLike[str] | None = None,
    name: str | None = None,
    *,
    quiet: bool = False,
    **options: Any,
) -> ScoreReader:
    """Add statistics to a finished cache; what ``tdpo cache add`` does.

    The base shards are never touched. The same call goes on with one that was cut off; where nothing is
    missing it does nothing.

    Args:
        cache: the cache's folder.
        name: of the new scores.
        quiet: show no progress.
        options: any other field of :class:`~tdpo.core.config.build.AddConfig`: ``positive`` and ``negative``,
            ``positive_prompt`` and ``negative_prompt``, ``ref``, ``head`` and ``tail``, or ``statistic``.

    Returns:
        The scores, opened.

    Raises:
        TdpoError: what was given cannot be used; one line that says what, where and what to do.
    """
    given = {
        **options,
        **{k: os.fspath(v) for k, v in (("cache", cache), ("name", name)) if v is not None},
    }
    return run_add(construct(AddConfig, given), quiet=quiet)


def run_add(config: AddConfig, *, quiet: bool = False) -> ScoreReader:
    """Add the statistics that ``config`` describes. Raises as :func:`add_statistics`."""
    check_name(config.name)
    kind = _kind(config)
    reader = open_cache(config.cache, statistics=("ref_logp",), cached_groups=1)
    addition: Addition = kind(config, reader)
    there = reader.manifest.scores.get(config.name)
    with quiet_libraries():
        # Before anything is replaced; what is finished was checked when it was made.
        if config.overwrite or there is None or not there.complete:
            addition.check()
        addition.run(_provenance(config), quiet)
    return open_scores(config.cache, config.name)


# What names each kind, and which further options go with it.
_KINDS = {
    "models": (("positive", "negative"), ()),
    "prompts": (("positive_prompt", "negative_prompt"), ("ref", "revision", "ref_adapter", "chat_template")),
    "statistic": (("statistic",), ("ref", "revision", "ref_adapter", "set")),
    "reference": (("ref", "head", "tail", "entropy"), ("revision", "ref_adapter", "seed")),
}
_ALWAYS = (
    *("name", "cache", "batch_tokens", "overwrite"),
    *("ref_dtype", "ref_quantization", "device_map", "attention"),
)


def _kind(config: AddConfig) -> Any:
    """The class of what is asked for.

    Raises:
        ConfigError: nothing is, or options that do not go together.
    """
    given = {name for name, value in vars(config).items() if value != getattr(_DEFAULTS, name)}
    kind = next((k for k, (marks, _) in _KINDS.items() if given & set(marks)), None)
    if kind is None:
        raise ConfigError(
            "say what to add: --positive MODEL --negative MODEL, --positive-prompt TEXT --negative-prompt "
            "TEXT, --ref MODEL, --head K --tail M, or --statistic NAME"
        )
    marks, more = _KINDS[kind]
    if others := sorted(given - {*marks, *more, *_ALWAYS}):
        with_ = "--" + marks[0].replace("_", "-")
        raise ConfigError(
            f"--{others[0].replace('_', '-')} does not go with {with_}: add one thing at a time, each under "
            "its own --name"
        )
    if kind == "models":
        from .contrast import ContrastOfModels

        return ContrastOfModels
    if kind == "prompts":
        from .contrast import ContrastOfPrompts

        return ContrastOfPrompts
    if kind == "statistic":
        from .statistic import AddedStatistic

        return AddedStatistic
    from .reference import AddedReference

    return AddedReference


_DEFAULTS = AddConfig(name="")


def _provenance(config: AddConfig) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "command": add_command(config),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("tdpo", "torch", "transformers")},
    }


@dataclass(frozen=True)
class AddedSummary:
    """One score set of a cache, for people and programs."""

    name: str
    kind: str
    columns: dict[str, str]
    """Statistic -> its shape."""
    rows: int
    """Pairs covered."""
    bytes: int
    complete: bool

    def __str__(self) -> str:
        columns = ", ".join(f"{name} ({shape})" for name, shape in self.columns.items())
        state = "" if self.complete else ", unfinished: run its tdpo cache add command again"
        return f"scores {self.name}: {columns} of {self.rows:,} pairs, {self.bytes / 1e6:,.2f} MB{state}"


def describe_scores(path: str | os.PathLike[str]) -> list[AddedSummary]:
    """The score sets of a cache.

    Raises:
        CacheError: there is no cache.
    """
    from ....cache.scores.sets import sets_in_use
    from ....cache.storage.files import Folder

    scores = read_manifest(Folder.at(path)).scores
    return [
        AddedSummary(
            name, one.kind, {n: c.shape for n, c in one.columns.items()}, one.rows, one.bytes, one.complete
        )
        for name, one in sets_in_use(scores)
    ]
