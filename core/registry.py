"""Plugins: found through entry points, asked through the hooks, resolved when a run names them."""

import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .errors import PluginError
from .options import construct, nearest

if TYPE_CHECKING:
    from .objective import Objective
    from .statistic import Statistic
    from .weighting import Weighting

GROUP = "tdpo"


@dataclass(frozen=True)
class Registered:
    """One name that a plugin provides: where its code is and which distribution it came with."""

    name: str
    target: str
    distribution: str

    @property
    def family(self) -> str:
        """The module it is in, by its own name: what belongs together."""
        return self.target.partition(":")[0].rpartition(".")[2]

    def resolve(self) -> Any:
        """Import the target.

        Raises:
            PluginError: the module or attribute cannot be loaded; names the distribution.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"plugin {self.name!r} of {self.distribution} does not load from {self.target!r}: "
                f"{type(error).__name__}: {_one_line(error)}; update or uninstall {self.distribution}"
            ) from error


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The manager with every wanted plugin loaded; ``TDPO_PLUGINS`` limits which third-party ones are.

    ``TDPO_PLUGINS=off`` loads the built-ins only; ``TDPO_PLUGINS=a,b`` the built-ins and the
    distributions (or entry points) named.

    Raises:
        PluginError: a plugin fails to load or implements an unknown hook; names its distribution.
    """
    manager = pluggy.PluginManager("tdpo")
    manager.add_hookspecs(hookspecs)
    for entry in sorted(entry_points(group=GROUP), key=_load_order):
        if not _wanted(entry):
            continue
        label = _label(entry)
        try:
            plugin = entry.load()
            _check_api(plugin, label)
            manager.register(plugin, name=label)
            manager.check_pending()
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {entry.name!r} of {label} fails to load: {type(error).__name__}: "
                f"{_one_line(error)}; update or uninstall it, or set TDPO_PLUGINS=off"
            ) from error
    return manager


def _check_api(plugin: Any, label: str) -> None:
    built_for = getattr(plugin, "TDPO_API", hookspecs.API_VERSION)
    if not isinstance(built_for, int):
        raise PluginError(f"{label} says TDPO_API = {built_for!r}, which is no whole number; update {label}")
    if built_for > hookspecs.API_VERSION:
        raise PluginError(
            f"{label} is built for version {built_for} of the plugin API, and this tdpo has version "
            f"{hookspecs.API_VERSION}: upgrade tdpo, install an older {label.split()[0]}, or set "
            "TDPO_PLUGINS=off"
        )


def objectives() -> dict[str, Registered]:
    """Every objective's name and where it comes from."""
    return _collect("tdpo_objectives")


def weightings() -> dict[str, Registered]:
    """Every weighting's name and where it comes from."""
    return _collect("tdpo_weightings")


def statistics() -> dict[str, Registered]:
    """Every statistic's name and where it comes from."""
    return _collect("tdpo_statistics")


def commands() -> dict[str, Registered]:
    """Every plugin command's name and where it comes from."""
    return _collect("tdpo_commands")


def objective_class(name: str) -> "type[Objective]":
    """The class registered as objective ``name``.

    Raises:
        PluginError: no such name (the nearest are offered), or it does not load.
    """
    from .objective import Objective

    return _class("objective", name, objectives(), Objective)


def objective(name: str, /, **options: Any) -> "Objective":
    """The objective ``name`` with the given hyperparameters; the Python face of ``--plugin`` and ``--set``.

    Example:
        >>> tdpo.objective("tdpo2", beta=0.1, alpha=0.5)

    Raises:
        PluginError: unknown objective. ConfigError: unknown or out-of-range hyperparameter.
    """
    return construct(objective_class(name), options, where=f"{name}: ")


def weighting_class(name: str) -> "type[Weighting]":
    """The class registered as weighting ``name``.

    Raises:
        PluginError: no such name (the nearest are offered), or it does not load.
    """
    from .weighting import Weighting

    return _class("weighting", name, weightings(), Weighting)


def weighting(name: str, /, **options: Any) -> "Weighting":
    """The weighting ``name`` with the given options; the Python face of ``--weighting``.

    Raises:
        PluginError: unknown weighting. ConfigError: unknown or out-of-range option.
    """
    return construct(weighting_class(name), options, where=f"{name}: ")


def statistic_class(name: str) -> "type[Statistic]":
    """The class registered as statistic ``name``.

    Raises:
        PluginError: no such name (the nearest are offered), or it does not load.
    """
    known = statistics()
    if name not in known:
        raise PluginError(
            f"--statistic {name}: no plugin provides it{nearest(name, known) or '; none is installed'}"
        )
    from .statistic import Statistic

    found = known[name].resolve()
    if not (isinstance(found, type) and issubclass(found, Statistic) and found.columns):
        raise PluginError(
            f"statistic {name!r} of {known[name].distribution}: {known[name].target} is not a tdpo.Statistic "
            "with columns"
        )
    return found


def _class(kind: str, name: str, known: dict[str, Registered], base: Any) -> Any:
    if name not in known:
        raise PluginError(f"no plugin provides the {kind} {name!r}{nearest(name, known)}")
    found = known[name].resolve()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(
            f"{kind} {name!r} of {known[name].distribution}: {known[name].target} is not a "
            f"tdpo.{base.__name__}"
        )
    return found


def _collect(hook: str) -> dict[str, Registered]:
    found: dict[str, Registered] = {}
    for implementation in getattr(plugin_manager().hook, hook).get_hookimpls():
        label = implementation.plugin_name
        try:
            offered = dict(implementation.function())
        except Exception as error:
            raise PluginError(f"{hook} of {label} fails: {type(error).__name__}: {error}") from error
        for name, target in offered.items():
            if name in found:
                raise PluginError(
                    f"{name!r} is given by both {found[name].distribution} and {label}; "
                    "uninstall one, or limit what is loaded with TDPO_PLUGINS"
                )
            if not isinstance(target, str) or ":" not in target:
                raise PluginError(
                    f"{hook} of {label}: {name!r} must map to 'module:attribute', not {target!r}"
                )
            found[name] = Registered(name, target, label)
    return dict(sorted(found.items()))


def _is_builtin(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == "tdpo"


def _load_order(entry: EntryPoint) -> tuple[bool, str, str]:
    return not _is_builtin(entry), _label(entry), entry.name


def _wanted(entry: EntryPoint) -> bool:
    setting = os.environ.get("TDPO_PLUGINS")
    if setting is None or _is_builtin(entry):
        return True
    wanted = {word.strip() for word in setting.split(",")}
    return bool(wanted & {entry.name, entry.dist.name if entry.dist else ""}) and setting != "off"


def _label(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
