"""``tdpo cache``: build caches, look at them, check them."""

import click

from .add import add
from .build import build
from .export import export
from .info import info
from .merge import merge
from .plan import plan
from .pull import pull
from .push import push
from .verify import verify


@click.group()
def cache() -> None:
    """Build a cache of a reference model's statistics, look at one, and check it."""


for _command in (add, build, export, info, merge, plan, pull, push, verify):
    cache.add_command(_command)
