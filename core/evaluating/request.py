"""What an evaluation is asked for: policies, caches and objectives, checked before any weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.manifest import identity_differences
from ...cache.reader import open_cache
from ..checks import check_model, check_needs, check_positions
from ..composing import compose, prepare
from ..config.eval import EvalConfig
from ..config.evaluation import eval_caches
from ..config.fit import FitConfig
from ..errors import CacheError, ConfigError, first_line
from ..joining import join_scores
from ..models import find_start
from ..options import construct
from ..runs.checkpoints import running_means
from ..runs.folder import RunFolder, is_run
from ..tokenizers import load_tokenizer

if TYPE_CHECKING:
    from ..objective import Objective

DEFAULT_PLUGIN = "dpo"


@dataclass(frozen=True)
class Target:
    """A cache that a policy is evaluated on."""

    place: str
    reader: Any
    """With the scores that are read beside it."""
    objective: "Objective"
    """Prepared."""
    notes: tuple[str, ...]
    """What whoever reads the figures must know."""


@dataclass(frozen=True)
class Subject:
    """A policy that is evaluated."""

    name: str
    place: str
    """As it was given."""
    run: RunFolder | None
    """None for a model that is no run."""
    policy: str
    """Where the model is."""
    identity: dict[str, Any]
    """What proves which weights these are."""
    config: FitConfig
    """The options of its objective; those of the run, where it is one."""
    targets: Mapping[str, Target]
    """By the names of the caches; ``""`` for the only one without a name."""
    notes: tuple[str, ...]


def open_subjects(config: EvalConfig) -> list[Subject]:
    """Open what ``config`` names, and check that it goes together.

    Raises:
        TdpoError: something cannot be used; says what, where and what to do.
    """
    if not config.run:
        raise ConfigError("RUN: name what to evaluate: the folder of a run, of a model, or a hub name")
    if config.model is not None and len(config.run) > 1:
        raise ConfigError(f"--model {config.model}: takes the place of the policy of one RUN; give one")
    if not config.plugin and config.weighting:
        raise ConfigError(f"--weighting {config.weighting[0]}: say of which objective, with --plugin NAME")
    runs = [_open_run(place) for place in config.run]
    names = _names(config.run, runs)
    return [
        _subject(config, name, place, run) for place, name, run in zip(config.run, names, runs, strict=True)
    ]


def _open_run(place: str) -> RunFolder | None:
    """The run in a folder; None where it is a model's name or folder."""
    folder = Path(place)
    if not folder.exists():
        # A hub name, unless it is clearly a path.
        if place.startswith((".", "/", "~")) or place.count("/") > 1 or folder.parts[:1] == ("runs",):
            return RunFolder.open(place)
        return None
    has_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return None if has_model and not is_run(folder) else RunFolder.open(folder)


def _names(places: list[str], runs: list[RunFolder | None]) -> list[str]:
    """A short name of each, or as it was given where that is not unique."""
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise ConfigError(f"RUN {twice}: is given twice; give each policy once")
    short = [
        run.name if run is not None else Path(place).name or place
        for place, run in zip(places, runs, strict=True)
    ]
    return [name if short.count(name) == 1 else place for name, place in zip(short, places, strict=True)]


def _subject(config: EvalConfig, name: str, place: str, run: RunFolder | None) -> Subject:
    policy = config.model or place
    if run is not None and config.model is None and not run.has_model:
        checkpoints = sorted(run.path.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        instead = f": evaluate {checkpoints[-1]} with --model, or go" if checkpoints else ": go"
        raise ConfigError(
            f"{place}: the run has no saved model, it has not come to its end{instead} on with tdpo fit "
            "--resume"
        )
    option = "RUN" if config.model is None else "--model"
    source = find_start(policy, option=option)
    tokenizer = load_tokenizer(source, option=option)
    options, notes = _objective_options(config, run)
    targets = {}
    for cache, where in _caches(config, place, run).items():
        target = _target(replace(options, cache=where), config, run, cache)
        check_model(source, tokenizer, target.reader, option=option)
        check_positions(replace(options, cache=where, eval_cache=[]), source, target.reader, {})
        targets[cache] = target
    return Subject(name, place, run, policy, source.identity(), options, targets, notes)


def _objective_options(config: EvalConfig, run: RunFolder | None) -> tuple[FitConfig, tuple[str, ...]]:
    """The options of the objective whose loss and rewards are reported, and what to say of them."""
    notes = []
    if run is not None and not config.plugin:
        if config.set:
            raise ConfigError(
                f"--set {next(iter(config.set))}: the run has its own options; give an objective to evaluate "
                "it by in another way, with --plugin NAME"
            )
        options = run.config
    else:
        plugin = config.plugin or [DEFAULT_PLUGIN]
        base = run.config if run is not None else construct(FitConfig, {"plugin": plugin})
        options = replace(base, plugin=plugin, weighting=config.weighting, set=config.set)
        if not config.plugin:
            notes.append(f"is no run: rewards and loss are those of {DEFAULT_PLUGIN}; choose with --plugin")
    if run is not None and config.model is None and not run.finished:
        notes.append("has not come to its end; its model is that of an earlier one")
    if run is not None and run.config.swap:
        notes.append("was trained with --swap; the labels here are those of the cache")
    changes = {
        name: value
        for name in ("scores", "reference", "kl_estimator")
        if (value := getattr(config, name)) is not None
    }
    return replace(options, **changes), tuple(notes)


def _caches(config: EvalConfig, place: str, run: RunFolder | None) -> dict[str, str]:
    if config.cache:
        try:
            return eval_caches(config.cache)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--eval-cache", "--cache")) from error
    if run is None:
        raise ConfigError(f"{place}: is a model and no run of tdpo fit: say on what with --cache DIR")
    if not run.eval_caches:
        raise ConfigError(
            f"{place}: was not evaluated on a cache while training: say on what with --cache DIR"
        )
    return run.eval_caches


def _target(options: FitConfig, config: EvalConfig, run: RunFolder | None, name: str) -> Target:
    """The cache of ``options``, with the objective as it was trained."""
    base = open_cache(options.cache)
    if run is not None and not config.cache:
        run.check_cache(base, name)
    if not len(base):
        raise CacheError(f"--cache {options.cache}: holds no pairs; build it from data that can be used")
    objective = compose(options.plugin, options.weighting, options.set)
    reader, _ = join_scores(options, objective, base, {})
    check_needs(options, objective, reader)
    notes = _other_reference(run, reader)
    prepared, more = _prepared(objective, options, run, reader)
    # Objectives are torch code, which `tdpo --help` does without.
    from ..trying import try_out

    try_out(prepared, options.plugin, reader)
    if run is not None and prepared.running and (means := running_means(run.path)):
        from ..composition import Settled

        prepared = Settled(prepared, means)
    return Target(options.cache, reader, prepared, (*notes, *more))


def _other_reference(run: RunFolder | None, reader: Any) -> tuple[str, ...]:
    """Whether the cache was built from another reference than the one that the run was trained against."""
    recorded = None if run is None else run.record.get("cache", {}).get("base", {}).get("reference")
    if recorded is None and run is not None:
        try:
            recorded = open_cache(run.cache, allow_incomplete=True).identity.get("reference")
        except CacheError:
            return ()
    if recorded is None or not identity_differences(
        {"reference": recorded}, {"reference": reader.identity.get("reference")}
    ):
        return ()
    return (
        f"{reader.location} was built from another reference than the run's: rewards, log-ratios and KL are "
        "to that one",
    )


def _prepared(
    objective: "Objective", options: FitConfig, run: RunFolder | None, reader: Any
) -> tuple["Objective", tuple[str, ...]]:
    """The objective with what it takes from the cache that it was trained from, where that is there."""
    here = prepare(objective, reader)
    if here == objective or run is None:
        return here, ()
    try:
        trained = open_cache(run.cache)
        joined, _ = join_scores(replace(options, cache=run.cache), objective, trained, {})
        return prepare(objective, joined), ()
    except CacheError as error:
        return here, (
            f"what the objective takes from its whole cache comes from {reader.location}, for the run's own "
            f"cannot be read ({first_line(error)})",
        )
