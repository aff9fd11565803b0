"""What tdpo loads: names and where their code is. It imports no torch, so listing plugins stays quick."""

from tdpo import hookimpl


@hookimpl
def tdpo_objectives() -> dict[str, str]:
    """Name, as in ``--plugin target_hinge``, to ``module:class``."""
    return {"target_hinge": "tdpo_hinge.objective:Hinge"}
