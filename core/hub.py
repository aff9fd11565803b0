"""Talking to the Hugging Face hub: what its client raises becomes one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from .errors import CacheError, ConfigError


@contextmanager
def talking(action: str, repository: str, kind: str, quiet: bool) -> Iterator[None]:
    """Turn what the hub's client raises into one line, and show its bars on a terminal only.

    Args:
        action: what is done, such as ``push to``.
        repository: ``USER/NAME``.
        kind: what it holds: ``data set`` or ``model``.
        quiet: show no bars.

    Raises:
        ConfigError: that is no repository's name.
        CacheError: the hub refuses, or cannot be reached.
    """
    hide = (quiet or not sys.stderr.isatty()) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    except hub_errors.HFValidationError as error:
        raise ConfigError(f"{repository}: {_first_line(error)}; a repository is named USER/NAME") from error
    except Exception as error:  # the client passes on the exceptions of several protocols
        what, advice = _advice(error, kind)
        raise CacheError(f"cannot {action} {repository} on the hub: {what}; {advice}") from error
    finally:
        if hide:
            enable_progress_bars()


def _advice(error: Exception, kind: str) -> tuple[str, str]:
    again = "run the same command again, which goes on from there"
    # The client's own HTTP library differs between its versions: its errors are known by name.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    match error:
        case hub_errors.OfflineModeIsEnabled():
            return "the hub is switched off", "unset HF_HUB_OFFLINE"
        case hub_errors.RevisionNotFoundError():
            return "no such revision", "check --revision"
        case hub_errors.RepositoryNotFoundError():
            return f"no such {kind}, or not for you", "check the name, and log in: hf auth login"
        case hub_errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return _first_line(error), "log in with a token that may do this: hf auth login"
        case _ if kinds & {"TransportError", "ConnectionError", "LocalEntryNotFoundError"}:
            return _first_line(error), f"check the network, and {again}"
        case OSError():
            return _first_line(error), f"check the disk and the network, and {again}"
        case _:
            return _first_line(error), again


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
