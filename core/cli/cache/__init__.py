"""``tdpo cache``: build caches, look at them, check them."""

import click

from .build import build
from .info import info
from .verify import verify


@click.group()
def cache() -> None:
    """Build a cache of a reference model's statistics, look at one, and check it."""


for _command in (build, info, verify):
    cache.add_command(_command)
