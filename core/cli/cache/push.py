"""``tdpo cache push``: share a cache on the hub."""

import json

import click


@click.command()
@click.argument("folder", metavar="DIR")
@click.argument("repository", metavar="REPO")
@click.option("--private", is_flag=True, help="make the repository private, where it is made")
@click.option("--revision", metavar="BRANCH", help="branch to push to, made where missing [default: main]")
@click.option("--json", "as_json", is_flag=True, help="what was pushed, for a program")
def push(folder: str, repository: str, private: bool, revision: str | None, as_json: bool) -> None:
    """Upload a finished cache to the Hugging Face hub, as the data set REPO (USER/NAME).

    One commit replaces the cache that REPO held before. Log in first: hf auth login.
    """
    from ...caching.hub import push_cache

    pushed = push_cache(folder, repository, private=private, revision=revision, quiet=as_json)
    if as_json:
        click.echo(json.dumps(pushed.to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(
            f"{repository}: {pushed.rows:,} pairs, {pushed.bytes / 1e6:,.1f} MB, commit {pushed.commit}"
        )
