"""Errors of the stages above the cache; every one is a :class:`~tdpo.cache.errors.TdpoError`."""

from textwrap import shorten

from ..cache.errors import CacheError, TdpoError

__all__ = [
    "CacheError",
    "ConfigError",
    "DataError",
    "LeaderEndedError",
    "ModelError",
    "PluginError",
    "StoppedBySignal",
    "TdpoError",
    "TrainingError",
    "first_line",
]


class ConfigError(TdpoError):
    """An unknown or out-of-range option, in a flag, ``--set``, ``tdpo.yaml`` or a Python argument."""


class DataError(TdpoError):
    """Preference data that cannot be read or turned into pairs."""


class ModelError(TdpoError):
    """A model or tokenizer that cannot be loaded, or does not fit the cache."""


class TrainingError(TdpoError):
    """A run that cannot go on: a loss or gradient that is not finite, or memory that does not suffice."""


class StoppedBySignal(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run after a checkpoint to go on from; its message says how.

    No mistake and no fault: what handles a :class:`TdpoError` and goes on must not swallow it.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """As shells report it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class LeaderEndedError(TdpoError):
    """Of several processes, the one that leads ended; it has said why."""

    def __init__(self) -> None:
        super().__init__("the process of rank 0 ended: it says why")


class PluginError(TdpoError):
    """A plugin that does not load, or a name that no plugin (or more than one) provides."""


def first_line(error: BaseException) -> str:
    """What an error says, cut to a line; its kind where it says nothing."""
    text = str(error).strip().splitlines()
    return shorten(text[0], 200, placeholder=" ...") if text else type(error).__name__
