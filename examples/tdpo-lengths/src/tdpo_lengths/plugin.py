"""What tdpo loads: names and where their code is."""

from tdpo import hookimpl


@hookimpl
def tdpo_commands() -> dict[str, str]:
    """Name, as in ``tdpo lengths``, to ``module:command``."""
    return {"lengths": "tdpo_lengths.command:lengths"}
