"""``tdpo demo``: the whole way on a small controlled experiment."""

import click


@click.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-demo")
@click.option(
    "--prepare-only", is_flag=True, help="make data, reference and tdpo.yaml, and leave the commands to you"
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="of everything random")
def demo(folder: str, prepare_only: bool, seed: int) -> None:
    """Cache a reference, train three policies from the cache, and draw what they did.

    A controlled-sentiment experiment after the TDPO paper's, small enough for two CPU cores; nothing is
    downloaded.
    """
    from ..demo.run import run_demo

    run_demo(folder, seed=seed, prepare_only=prepare_only)
