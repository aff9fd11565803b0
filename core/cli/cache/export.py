"""``tdpo cache export``: a cache as a data set for another trainer."""

import click


@click.command()
@click.argument("folder", metavar="[DIR]", default="tdpo-cache")
@click.option("--out", required=True, metavar="OUT", help="folder to write")
@click.option(
    "--format",
    "format",
    default="parquet",
    metavar="parquet|arrow|jsonl",
    help="parquet and jsonl are for load_dataset, arrow is for load_from_disk [default parquet]",
)
@click.option("--overwrite", is_flag=True, help="replace an earlier export")
@click.option("--json", "as_json", is_flag=True, help="what was written, for a program")
def export(folder: str, out: str, format: str, overwrite: bool, as_json: bool) -> None:
    """Write a data set that TRL's DPOTrainer trains from without its reference.

    Token ids as in the cache, and the columns ref_chosen_logps and ref_rejected_logps: the reference's
    log-probabilities, summed over each completion. OUT/README.md says how to use it.
    """
    from ...caching.export import export_cache

    report = export_cache(folder, out, format=format, overwrite=overwrite)
    click.echo(report.to_json() if as_json else str(report))
