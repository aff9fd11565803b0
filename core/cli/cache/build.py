"""``tdpo cache build``: run the reference once."""

from typing import Any

import click

from ...config.build import BuildConfig
from ...config.file import build_config
from ...errors import ConfigError, DataError
from ..options import config_option, config_path, given, options_of
from .info import describe


@click.command()
@config_option
@options_of(BuildConfig)
@click.option(
    "--dry-run", is_flag=True, help="show the first pairs as tokens and what would be skipped; build nothing"
)
@click.option(
    "--json", "as_json", is_flag=True, help="of --dry-run: what it shows, with token ids, for a program"
)
def build(config: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run the reference once over preference pairs and write what it said.

    The same command resumes a build that was cut off.
    """
    resolved = build_config(given(options), config_path(config))
    if dry_run:
        from ...caching.preview import run_preview

        preview = run_preview(resolved, quiet=as_json)
        click.echo(preview.to_json() if as_json else str(preview))
        if preview.refusal is not None:
            raise DataError(preview.refusal)
        return
    if as_json:
        raise ConfigError("--json is for --dry-run: give both; of a cache, tdpo cache info --json tells")
    from ...caching.build import run_build
    from ...runs.output import is_first_process

    reader = run_build(resolved)
    if is_first_process():
        describe(reader.location, reader.manifest)
