"""``tdpo cache merge``: join the parts of a cache."""

import json
from dataclasses import asdict

import click

from .info import describe


@click.command()
@click.argument("parts", metavar="PART...", nargs=-1, required=True)
@click.option("--out", metavar="DIR", required=True, help="folder of the whole cache")
@click.option("--overwrite", is_flag=True, help="replace a cache that the folder holds")
@click.option("--json", "as_json", is_flag=True, help="what was made, for a program")
def merge(parts: tuple[str, ...], out: str, overwrite: bool, as_json: bool) -> None:
    """Join the parts of a cache that were built with --part i/n.

    The result is the cache that one build without --part would have given. The parts are left as they are.
    """
    from ....cache.merge import merge_caches
    from ...progress import Progress

    with Progress("merging", 0, "bytes", quiet=as_json) as progress:

        def tell(done: int, total: int) -> None:
            progress.total = total
            progress.reach(done)

        reader = merge_caches(parts, out, overwrite=overwrite, progress=tell)
    manifest = reader.manifest
    if not as_json:
        describe(reader.location, manifest)
        return
    made = {
        "path": reader.location,
        "parts": len(parts),
        "shards": manifest.shard_count,
        "rows": manifest.rows,
        "prompt_tokens": manifest.prompt_tokens,
        "completion_tokens": manifest.completion_tokens,
        "bytes": manifest.bytes,
        "skipped": {reason: asdict(skipped) for reason, skipped in manifest.skipped.items()},
    }
    click.echo(json.dumps(made, indent=2, ensure_ascii=False))
