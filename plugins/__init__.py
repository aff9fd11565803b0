"""The built-in objectives, registered through the same hooks as anyone else's.

One file a family; each imports the objective contract only.
"""

from ..core.hookspecs import hookimpl


@hookimpl
def tdpo_objectives() -> dict[str, str]:
    """Names of the built-in objectives."""
    return {
        "dpo": "tdpo.plugins.dpo:DPO",
        "tdpo1": "tdpo.plugins.tdpo:TDPO1",
        "tdpo2": "tdpo.plugins.tdpo:TDPO2",
    }
