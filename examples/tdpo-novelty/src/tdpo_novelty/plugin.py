"""What tdpo loads: names and where their code is."""

from tdpo import hookimpl


@hookimpl
def tdpo_statistics() -> dict[str, str]:
    """Name, as in ``tdpo cache add --statistic novelty``, to ``module:class``."""
    return {"novelty": "tdpo_novelty.statistic:Novelty"}


@hookimpl
def tdpo_objectives() -> dict[str, str]:
    """Name, as in ``tdpo fit --plugin novelty_dpo``, to ``module:class``."""
    return {"novelty_dpo": "tdpo_novelty.objective:NoveltyDPO"}
