"""What tdpo loads: names and where their code is."""

from tdpo import hookimpl


@hookimpl
def tdpo_weightings() -> dict[str, str]:
    """Name, as in ``tdpo fit --weighting open_tokens``, to ``module:class``."""
    return {"open_tokens": "tdpo_open_tokens.weighting:OpenTokens"}
