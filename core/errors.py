"""Errors of the stages above the cache; every one is a :class:`~tdpo.cache.errors.TdpoError`."""

from ..cache.errors import CacheError, TdpoError

__all__ = [
    "CacheError",
    "ConfigError",
    "DataError",
    "LeaderEndedError",
    "ModelError",
    "PluginError",
    "TdpoError",
]


class ConfigError(TdpoError):
    """An unknown or out-of-range option, in a flag, ``--set``, ``tdpo.yaml`` or a Python argument."""


class DataError(TdpoError):
    """Preference data that cannot be read or turned into pairs."""


class ModelError(TdpoError):
    """A model or tokenizer that cannot be loaded, or does not fit the cache."""


class LeaderEndedError(TdpoError):
    """Of several processes, the one that leads ended; it has said why."""

    def __init__(self) -> None:
        super().__init__("the process of rank 0 ended: it says why")


class PluginError(TdpoError):
    """A plugin that does not load, or a name that no plugin (or more than one) provides."""
