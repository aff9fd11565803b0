"""``tdpo cache verify``: whether a cache is what it should be."""

import click


@click.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@click.option(
    "--rescore", default=0, metavar="N", type=click.IntRange(min=0), help="score N random pairs again"
)
@click.option("--ref", metavar="MODEL", help="model to do so with [default: the one that the manifest names]")
@click.option("--json", "as_json", is_flag=True, help="the report, for a program")
def verify(folder: str, rescore: int, ref: str | None, as_json: bool) -> int:
    """Check a cache: files, checksums, schema, ids, lengths and ranges of all values.

    Prints a line for each fault. Exits with 0 where there is none, with 1 where there are some.
    """
    from ...caching.verify import verify_cache

    report = verify_cache(folder, rescore, ref)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report.ok else 1
