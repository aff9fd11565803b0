"""``tdpo lengths``: does length give the preference away?"""

import click


@click.command()
@click.argument("cache", default="tdpo-cache")
def lengths(cache: str) -> None:
    """Tell how often the longer completion is the chosen one."""
    import tdpo

    # No statistics: only the token ids are decoded.
    cached = tdpo.open_cache(cache).iter(statistics=())
    pairs = [(len(one.pair.chosen_ids), len(one.pair.rejected_ids)) for one in cached]
    longer, equal = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    click.echo(f"{cache}: {len(pairs):,} pairs; chosen is longer in {longer:,}, as long in {equal:,}")
    means = [sum(side) / max(1, len(pairs)) for side in zip(*pairs, strict=True)] if pairs else [0.0, 0.0]
    click.echo(f"  mean length   chosen {means[0]:.1f}, rejected {means[1]:.1f} tokens")
