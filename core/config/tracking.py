"""Which experiment trackers a fit reports to."""

from importlib.util import find_spec

from ..errors import ConfigError
from ..options import nearest
from .fit import FitConfig

# Each is also the name of its package.
TRACKERS = ("tensorboard", "trackio", "wandb")


def trackers(config: FitConfig) -> list[str]:
    """The trackers that ``--report-to`` names.

    Raises:
        ConfigError: one is unknown, or its package is not installed.
    """
    names = [name.strip() for name in config.report_to.split(",")]
    if names == ["none"]:
        return []
    for name in names:
        if name not in TRACKERS:
            known = nearest(name, (*TRACKERS, "none"))
            raise ConfigError(f"--report-to {config.report_to}: no tracker {name!r}{known}")
        if find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: its package is not installed; pip install {name}")
    return list(dict.fromkeys(names))
