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
    "CacheFacts": "tdpo.core.objective",
    "Column": "tdpo.core.statistic",
    "Completions": "tdpo.core.objective",
    "MarginObjective": "tdpo.core.objective",
    "Objective": "tdpo.core.objective",
    "PairLoss": "tdpo.core.objective",
    "Statistic": "tdpo.core.statistic",
    "TdpoError": "tdpo.cache.errors",
    "TokenStatistic": "tdpo.core.statistic",
    "Weighting": "tdpo.core.weighting",
    "add_statistics": "tdpo.core.caching.adding.add",
    "build_cache": "tdpo.core.caching.build",
    "cache_page": "tdpo.core.report.cache_page",
    "evaluate": "tdpo.core.evaluating.run",
    "export_cache": "tdpo.core.caching.export",
    "fit": "tdpo.core.fit",
    "hidden_states": "tdpo.core.statistic",
    "hookimpl": "tdpo.core.hookspecs",
    "hyperparameter": "tdpo.core.options",
    "list_runs": "tdpo.core.runs.listing",
    "merge_caches": "tdpo.cache.merge",
    "objective": "tdpo.core.registry",
    "open_cache": "tdpo.cache.reader",
    "pull_cache": "tdpo.core.caching.hub",
    "push_cache": "tdpo.core.caching.hub",
    "push_run": "tdpo.core.publishing.push",
    "open_scores": "tdpo.cache.scores.reader",
    "preview_build": "tdpo.core.caching.preview",
    "report": "tdpo.core.report.report",
    "sample_pairs": "tdpo.core.sampling.sample",
    "plan_cache": "tdpo.core.caching.planning.plan",
    "plan_fit": "tdpo.core.training.planning.plan",
    "token_table": "tdpo.core.report.tokens",
    "verify_cache": "tdpo.core.caching.verify",
    "weighting": "tdpo.core.registry",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from tdpo.cache.errors import CacheError as CacheError
    from tdpo.cache.errors import TdpoError as TdpoError
    from tdpo.cache.merge import merge_caches as merge_caches
    from tdpo.cache.reader import open_cache as open_cache
    from tdpo.cache.scores.reader import open_scores as open_scores
    from tdpo.core.caching.adding.add import add_statistics as add_statistics
    from tdpo.core.caching.build import build_cache as build_cache
    from tdpo.core.caching.export import export_cache as export_cache
    from tdpo.core.caching.hub import pull_cache as pull_cache
    from tdpo.core.caching.hub import push_cache as push_cache
    from tdpo.core.caching.planning.plan import plan_cache as plan_cache
    from tdpo.core.caching.preview import preview_build as preview_build
    from tdpo.core.caching.verify import verify_cache as verify_cache
    from tdpo.core.evaluating.run import evaluate as evaluate
    from tdpo.core.fit import fit as fit
    from tdpo.core.hookspecs import hookimpl as hookimpl
    from tdpo.core.objective import CacheFacts as CacheFacts
    from tdpo.core.objective import Completions as Completions
    from tdpo.core.objective import MarginObjective as MarginObjective
    from tdpo.core.objective import Objective as Objective
    from tdpo.core.objective import PairLoss as PairLoss
    from tdpo.core.options import hyperparameter as hyperparameter
    from tdpo.core.publishing.push import push_run as push_run
    from tdpo.core.registry import objective as objective
    from tdpo.core.registry import weighting as weighting
    from tdpo.core.report.report import report as report
    from tdpo.core.report.tokens import token_table as token_table
    from tdpo.core.runs.listing import list_runs as list_runs
    from tdpo.core.sampling.sample import sample_pairs as sample_pairs
    from tdpo.core.statistic import Column as Column
    from tdpo.core.statistic import Statistic as Statistic
    from tdpo.core.statistic import TokenStatistic as TokenStatistic
    from tdpo.core.statistic import hidden_states as hidden_states
    from tdpo.core.training.planning.plan import plan_fit as plan_fit
    from tdpo.core.weighting import Weighting as Weighting


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tdpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
