"""Peak memory and time of a build as its rows grow.

    python benchmarks/scaling.py [--quick] [--rounds N] [--results DIR]

`tdpo.build_cache` over 1,000 to 20,000 rows of one file, each size in a process of its own, with a model so
small that what grows with the rows would show. Memory is what a build adds to a process that has imported
everything: it has to stop growing once a shard is being scored while the one before is written. Time has to
grow as the tokens do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import common
import workload

ROWS = (1_000, 2_000, 5_000, 10_000, 20_000)
QUICK_ROWS = (40, 80)
SHAPE, LENGTHS = "d=64, 2 layers, V=2k", "short"

COLUMNS = {
    "what": ("job", ""),
    "rows": ("rows", ",.0f"),
    "tokens": ("tokens", ",.0f"),
    "seconds": ("seconds", ",.1f"),
    "rate": ("tokens/s", ",.0f"),
    "added": ("peak MB added", ",.0f"),
    "peak": ("peak MB", ",.0f"),
}


def main() -> None:
    """Build caches of every size and print a table."""
    options = common.arguments(__doc__, rounds=2).parse_args()
    rows = builds(QUICK_ROWS if options.quick else ROWS, options.rounds)
    most, least = (pick(row["peak"] for row in rows[1:]) for pick in (max, min))
    notes = [
        "Targets: peak memory flat from 1,000 to 20,000 rows, time linear in tokens.",
        f"Peak memory from {rows[1]['rows']:,} rows on differs by {most / least - 1:.1%}; "
        f"time per token at most by a factor of {spread(rows):.2f}.",
    ]
    common.finish("scaling", options, rows, COLUMNS, notes, draw)


def builds(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row of the table for every number of rows."""
    vocab = workload.SHAPES[SHAPE]["vocab"]
    case = {"shape": SHAPE, "lengths": LENGTHS, "batch_tokens": 8192}
    tasks = {str(size): ("build", case | {"pairs": size}) for size in sizes}
    found = common.in_turns(__file__, tasks, rounds, warm_up=False)
    rows = []
    for size in sizes:
        one = found[str(size)]
        tokens = workload.scored_tokens(workload.each_pair(LENGTHS, size, vocab))
        seconds = common.best(one.seconds)
        peak, before = one.peak["peak"]["rss"] / 1e6, one.peak["before"]["rss"] / 1e6
        rows.append(
            {
                "what": "cache build",
                "rows": size,
                "tokens": tokens,
                "seconds": seconds,
                "rate": tokens / seconds,
                "peak": peak,
                "added": peak - before,
                "all_seconds": one.seconds,
            }
        )
    return rows


def spread(rows: Sequence[Mapping[str, Any]]) -> float:
    """The slowest over the fastest rate."""
    rates = [row["rate"] for row in rows]
    return max(rates) / min(rates)


def build(case: dict[str, Any]) -> common.Repeat:
    """A whole build."""
    return common.timed(workload.whole_build(case))


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Memory and time over rows."""
    memory, time = figure.subplots(1, 2)
    sizes = [row["rows"] for row in rows]
    memory.plot(sizes, [row["peak"] for row in rows], "o-")
    memory.set_ylabel("peak memory, MB")
    memory.set_ylim(bottom=0)
    time.plot([row["tokens"] / 1e6 for row in rows], [row["seconds"] for row in rows], "o-")
    time.set_xlabel("million tokens")
    time.set_ylabel("seconds")
    time.set_xlim(left=0)
    time.set_ylim(bottom=0)
    memory.set_xlabel("rows")
    figure.suptitle("tdpo cache build")


if __name__ == "__main__":
    common.serve({"build": build})
    main()
