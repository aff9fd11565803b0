"""``tdpo cache build``: run the reference once."""

from typing import Any

import click

from ...config import BuildConfig, build_config
from ..options import config_option, config_path, given, options_of
from .info import describe


@click.command()
@config_option
@options_of(BuildConfig)
def build(config: str | None, **options: Any) -> None:
    """Run the reference once over preference pairs and write what it said.

    The same command resumes a build that was cut off.
    """
    resolved = build_config(given(options), config_path(config))
    from ...caching.build import run_build

    reader = run_build(resolved)
    describe(str(reader.path), reader.manifest)
