"""``tdpo cache pull``: fetch a cache from the hub."""

import json

import click


@click.command()
@click.argument("repository", metavar="REPO")
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@click.option("--revision", help="branch, tag or commit [default: main]")
@click.option("--json", "as_json", is_flag=True, help="what was pulled, for a program")
def pull(repository: str, folder: str, revision: str | None, as_json: bool) -> None:
    """Download a cache from the data set REPO (USER/NAME) of the Hugging Face hub.

    DIR appears when everything is there and agrees with its checksums. The same command goes on with a
    download that was cut off.
    """
    from ...caching.hub import pull_cache

    pulled = pull_cache(repository, folder, revision=revision, quiet=as_json)
    if as_json:
        click.echo(json.dumps(pulled.to_dict(), indent=2, ensure_ascii=False))
    else:
        there = "there already" if pulled.commit is None else f"commit {pulled.commit}"
        click.echo(f"{folder}: {pulled.rows:,} pairs, {pulled.bytes / 1e6:,.1f} MB, {there}")
