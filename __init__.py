"""tdpo: align language models from preference pairs with only the policy in memory.

The names below are the public API. They are loaded on first use: importing ``tdpo`` imports neither
torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. (pytest may load this file under another name than ``tdpo``,
# so nothing relative is imported until a name is asked for.)
_PUBLIC = {
    "CacheError": "tdpo.cache.errors",
    "Completions": "tdpo.core.objective",
    "MarginObjective": "tdpo.core.objective",
    "Objective": "tdpo.core.objective",
    "PairLoss": "tdpo.core.objective",
    "TdpoError": "tdpo.cache.errors",
    "build_cache": "tdpo.core.caching.build",
    "fit": "tdpo.core.fit",
    "hookimpl": "tdpo.core.hookspecs",
    "hyperparameter": "tdpo.core.options",
    "objective": "tdpo.core.registry",
    "open_cache": "tdpo.cache.reader",
    "verify_cache": "tdpo.core.caching.verify",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from tdpo.cache.errors import CacheError as CacheError
    from tdpo.cache.errors import TdpoError as TdpoError
    from tdpo.cache.reader import open_cache as open_cache
    from tdpo.core.caching.build import build_cache as build_cache
    from tdpo.core.caching.verify import verify_cache as verify_cache
    from tdpo.core.fit import fit as fit
    from tdpo.core.hookspecs import hookimpl as hookimpl
    from tdpo.core.objective import Completions as Completions
    from tdpo.core.objective import MarginObjective as MarginObjective
    from tdpo.core.objective import Objective as Objective
    from tdpo.core.objective import PairLoss as PairLoss
    from tdpo.core.options import hyperparameter as hyperparameter
    from tdpo.core.registry import objective as objective


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tdpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
