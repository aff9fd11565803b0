"""The objective of a fit, out of what --plugin, --weighting and --set say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .options import nearest
from .registry import objective as make_objective
from .registry import objective_class, weighting_class
from .registry import weighting as make_weighting

if TYPE_CHECKING:
    from ..cache.pairs import ScoredPair
    from .objective import Objective
    from .weighting import Weighting

_READ = 256


def compose(
    plugins: Sequence[str], weightings: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> "Objective":
    """The objective ``NAME``, or the weighted sum of several, its margins under weightings.

    Args:
        plugins: ``NAME`` or ``NAME=WEIGHT``; rewards are those of the first.
        weightings: their names.
        options: hyperparameters, ``OPTION`` or ``NAME.OPTION``.

    Raises:
        PluginError: a name that no plugin provides.
        ConfigError: an option that does not fit, or weightings of an objective that has no use for them.
    """
    coefficients = dict(_coefficients(plugins))
    for kind, names in (("plugin", [*plugins]), ("weighting", [*weightings])):
        if len(names) > len({name.partition("=")[0] for name in names}):
            raise ConfigError(f"--{kind} {' '.join(names)}: one of them is given twice")
    classes: dict[str, Any] = {name: objective_class(name) for name in coefficients}
    classes |= {f"{name} (weighting)": weighting_class(name) for name in weightings}
    shares = _shared_out(options or {}, {key: {f.name for f in fields(cls)} for key, cls in classes.items()})
    objectives = {name: make_objective(name, **shares[name]) for name in coefficients}
    made = {name: make_weighting(name, **shares[f"{name} (weighting)"]) for name in weightings}
    _check_token_weights(objectives, made)
    if len(objectives) == 1 and not made and set(coefficients.values()) == {1.0}:
        return next(iter(objectives.values()))
    from .composition import Composition, Part

    parts = tuple(Part(name, objective, coefficients[name]) for name, objective in objectives.items())
    _check_weighed(objectives, made)
    return Composition(parts, tuple(made.items()))


def prepare(objective: "Objective", reader: Any) -> "Objective":
    """``objective`` with what it takes from the whole cache behind ``reader`` filled in.

    Raises:
        ConfigError: the cache has not what it takes.
    """
    from .objective import CacheFacts

    def pairs(statistics: frozenset[str]) -> "Iterator[ScoredPair]":
        for start in range(0, len(reader), _READ):
            rows = range(start, min(start + _READ, len(reader)))
            yield from reader.read(rows, statistics=statistics)

    facts: CacheFacts = CacheFacts(reader.vocab_size, pairs)
    return objective.prepared(facts)


def _coefficients(plugins: Sequence[str]) -> Iterator[tuple[str, float]]:
    for given in plugins:
        name, found, weight = given.partition("=")
        try:
            yield name, float(weight) if found else 1.0
        except ValueError:
            raise ConfigError(f"--plugin {given}: expected NAME or NAME=WEIGHT, such as sft=0.1") from None


def _shared_out(options: Mapping[str, Any], known: Mapping[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Each one's options; those without a name go to the first objective, or to the only one to know them."""
    shares: dict[str, dict[str, Any]] = {name: {} for name in known}
    for key, value in options.items():
        of, _, option = key.rpartition(".")
        holders = [name for name in known if option in known[name] and of in ("", name.partition(" ")[0])]
        if len(holders) > 1 and not of and holders[0] != next(iter(known)):
            names = " or ".join(f"{name.partition(' ')[0]}.{option}" for name in holders)
            raise ConfigError(f"--set {key}: more than one has that option; say {names}")
        if not holders and len(known) == 1 and not of:
            # The one there is says what it knows.
            holders = list(known)
        if not holders:
            every = {f"{name.partition(' ')[0]}.{each}" for name, own in known.items() for each in own}
            raise ConfigError(f"--set {key}: is no option of {', '.join(known)}{nearest(key, every)}")
        for name in holders if of else holders[:1]:
            shares[name][option] = value
    return shares


def _check_token_weights(
    objectives: Mapping[str, "Objective"], weightings: Mapping[str, "Weighting"]
) -> None:
    lacking = [name for name, each in objectives.items() if "token_weight" in each.needs]
    if lacking and not any(_gives_token_weights(each) for each in weightings.values()):
        raise ConfigError(
            f"--plugin {lacking[0]} weighs tokens and has no weights of its own: add --weighting tis, or "
            "another that gives token weights (tdpo plugins list)"
        )


def _gives_token_weights(weighting: "Weighting") -> bool:
    from .weighting import Weighting

    return type(weighting).token_weights is not Weighting.token_weights


def _check_weighed(objectives: Mapping[str, "Objective"], weightings: Mapping[str, "Weighting"]) -> None:
    """Refuse a weighting that would change nothing."""
    from .objective import MarginObjective

    margins = {name: each for name, each in objectives.items() if isinstance(each, MarginObjective)}
    for name, weighting in weightings.items():
        if not margins:
            raise ConfigError(
                f"--weighting {name}: --plugin {' and '.join(objectives)} has no margin for it to multiply; "
                "use an objective that has one, such as dpo or tdpo2"
            )
        if _gives_token_weights(weighting) and not any(map(_reads_token_weights, margins.values())):
            raise ConfigError(
                f"--weighting {name}: weighs the tokens' log-ratios, which --plugin {' and '.join(margins)} "
                "does not read; use an objective that does, such as dpo or tdpo2"
            )


def _reads_token_weights(objective: "Objective") -> bool:
    """Whether its loss changes with them, tried on two made-up pairs; True where that cannot be tried."""
    import torch

    from .trying import made_up_side

    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    chosen, rejected = (made_up_side(mask, seed, _Added(mask, seed)) for seed in (3, 5))
    try:
        with torch.no_grad():
            plain = objective(*(replace(side, token_weight=torch.ones(2, 4)) for side in (chosen, rejected)))
            weighed = objective(chosen, rejected)
    except Exception:
        return True
    return not torch.equal(plain.loss, weighed.loss)


class _Added(dict[str, Any]):
    """Added statistics of any name, one number a token."""

    def __init__(self, mask: Any, seed: int):
        super().__init__()
        self.mask, self.seed = mask, seed

    def __missing__(self, name: str) -> Any:
        import torch

        generator = torch.Generator().manual_seed(self.seed + sum(name.encode()))
        self[name] = torch.rand(self.mask.shape, generator=generator) + 0.1
        return self[name]

    def __contains__(self, name: object) -> bool:
        return True
