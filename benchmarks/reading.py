"""Completion tokens a second that one core reads from a cache in the order of an epoch, and its memory.

    python benchmarks/reading.py [--quick] [--rounds N] [--results DIR]

Synthetic caches of V = 128,000 with k = m = 8, on a local disk whose pages the system still holds: short and
long completions, and five times as many of the short ones. Every contender is a process held to one core that
goes through a whole epoch, shuffled as training shuffles it, from files that it opens anew each time:

* all columns, and the log-probabilities alone, in batches of 32 pairs;
* what a training step gets: the same through torch's DataLoader and `collate`, in the training process.

Peak memory is what is added to the process after its cache is open: were it to grow with the rows, the larger
cache would show it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import results
import workload

from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.writer import CacheWriter

BATCH = 32
VOCAB, HEAD, TAIL = 128_000, 8, 8

# Lengths and rows of a cache.
CACHES = {
    "short": ({"prompt": (60, 0.6), "completion": (60, 0.6)}, 5_000),
    "short, 5 times the rows": ({"prompt": (60, 0.6), "completion": (60, 0.6)}, 25_000),
    "long": ({"prompt": (300, 0.6), "completion": (500, 0.4)}, 2_000),
}
QUICK_ROWS = 150

WAYS = {"all": "all columns", "logp": "ref_logp", "training": "DataLoader + collate"}

COLUMNS = {
    "cache": ("completions", ""),
    "rows": ("rows", ",.0f"),
    "tokens": ("tokens", ",.0f"),
    "bytes_per_token": ("B/token", ".1f"),
    "way": ("read", ""),
    "rate": ("tokens/s", ",.0f"),
    "added": ("peak MB added", ",.0f"),
}


def main() -> None:
    """Write the caches, read them in every way, and print a table."""
    options = results.arguments(__doc__).parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="tdpo-benchmark-") as folder:
        for name, (lengths, count) in CACHES.items():
            path = Path(folder) / name.replace(" ", "-").replace(",", "")
            print(f"writing {name} ...", flush=True)
            write_cache(path, lengths, QUICK_ROWS if options.quick else count)
            rows += measure(name, path, options.rounds)
    notes = [
        "Target: at least 1,000,000 completion tokens/s on one core, with memory that does not grow with the "
        "rows. The rate is the fastest epoch's."
    ]
    results.finish("reading", options, rows, COLUMNS, notes, draw)


def measure(name: str, path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A row of the table for every way of reading a cache."""
    from tdpo.cache.reader import open_cache

    reader = open_cache(path)
    tasks = {way: ("read", {"cache": str(path), "way": way}) for way in WAYS}
    for way, found in contenders.in_turns(__file__, tasks, rounds).items():
        assert found.measured[0]["tokens"] == reader.completion_tokens
        yield {
            "cache": name,
            "rows": len(reader),
            "tokens": reader.completion_tokens,
            "bytes_per_token": reader.manifest.bytes / reader.completion_tokens,
            "way": WAYS[way],
            "rate": reader.completion_tokens / contenders.best(found.seconds),
            "added": (found.peak["peak"]["rss"] - found.peak["before"]["rss"]) / 1e6,
            "seconds": found.seconds,
        }


# --- The cache ----------------------------------------------------------------------------------------------


def write_cache(path: Path, lengths: Mapping[str, Any], rows: int) -> None:
    """A cache that looks like a language model's to a compressor: Zipf's law, mostly sure of itself."""
    statistics = {"entropy": True, "head": HEAD, "tail": TAIL, "seed": 0, "vocab_size": VOCAB}
    statistics |= {"head_mass": 1.0, "tail_mass": 0.0}
    rng = np.random.default_rng(0)
    with CacheWriter(path, {"statistics": statistics}, {}, source_rows=rows, shard_rows=1024) as writer:
        for index in range(writer.shards):
            scored = [make_record(rng, row, lengths) for row in writer.source_rows(index)]
            writer.write_shard(index, scored, {})
        writer.finish()


def make_record(rng: np.random.Generator, row: int, lengths: Mapping[str, Any]) -> ScoredPair:
    """A pair with its statistics."""
    sizes = [workload.draw_length(rng, lengths[part]) for part in ("prompt", "completion", "completion")]
    pair = Pair.make(row, *(zipf(rng, size) for size in sizes))
    return ScoredPair(pair, *(make_side(rng, size) for size in sizes[1:]))


def make_side(rng: np.random.Generator, tokens: int) -> SideStatistics:
    """Statistics of one completion, the head in falling order."""
    entries = HEAD + TAIL
    # How sure the reference is differs from token to token: the same in the head, the tail and the entropy.
    spread = rng.gamma(0.6, 2.0, (tokens, 1))
    logp = -spread * rng.exponential(1.5, (tokens, entries)) - 1e-3
    logp[:, :HEAD] = -np.sort(-logp[:, :HEAD], axis=1)
    logp[:, HEAD:] -= 6
    # A head that sums to more than 1 would be refused.
    logp[:, :HEAD] -= np.log(np.maximum(1, np.exp(logp).sum(1, keepdims=True))) + 1e-2
    ids = zipf(rng, tokens * entries).astype(np.uint32).reshape(tokens, entries)
    ids[:, :HEAD] = np.sort(ids[:, :HEAD], axis=1) // entries * entries + np.arange(HEAD)
    ids[:, HEAD:] = ids[:, HEAD:] // entries * entries + HEAD
    return SideStatistics(
        ref_logp=logp[:, 0].astype(np.float32),
        ref_entropy=(spread[:, 0] + 0.01).clip(max=11).astype(np.float16),
        dist_ids=ids,
        dist_logp=logp.astype(np.float16),
    )


def zipf(rng: np.random.Generator, count: int) -> np.ndarray:
    """Token ids, the small ones often."""
    return (VOCAB ** rng.random(count)).astype(np.int64).clip(0, VOCAB - 1)


# --- Contenders ---------------------------------------------------------------------------------------------


def read(case: dict[str, Any]) -> contenders.Repeat:
    """An epoch of a cache, in one of the :data:`WAYS`."""
    one_core()
    if case["way"] == "training":
        epoch = through_loader(case["cache"])
    else:
        epoch = through_reader(case["cache"], ["ref_logp"] if case["way"] == "logp" else None)
    epochs = iter(range(1_000_000))

    def work() -> dict[str, Any]:
        return {"tokens": epoch(next(epochs))}

    return contenders.timed(work)


def one_core() -> None:
    """Hold this process, and whatever threads it starts, to one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def through_reader(cache: str, statistics: list[str] | None) -> Callable[[int], int]:
    """The tokens of epoch e, read batch by batch; every array is looked at."""
    from tdpo.cache.order import epoch_order
    from tdpo.cache.reader import open_cache

    reader = open_cache(cache, statistics=statistics)
    sizes = reader.group_sizes

    def epoch(number: int) -> int:
        reader.close()
        order = epoch_order(sizes, 0, number)
        tokens = 0
        for start in range(0, len(order), BATCH):
            for record in reader.read(order[start : start + BATCH]):
                tokens += len(record.chosen.ref_logp) + len(record.rejected.ref_logp)
        return tokens

    return epoch


def through_loader(cache: str) -> Callable[[int], int]:
    """The tokens of epoch e as a training run of all statistics gets them, ready to be scored."""
    import torch
    from torch.utils.data import DataLoader

    from tdpo.cache.reader import open_cache
    from tdpo.core.training.data import CachedPairs, EpochSampler, collate

    torch.set_num_threads(1)
    reader = open_cache(cache)
    sampler = EpochSampler(reader, seed=0)
    loader = DataLoader(CachedPairs(reader), batch_size=BATCH, sampler=sampler, collate_fn=collate)

    def epoch(number: int) -> int:
        reader.close()
        sampler.set_epoch(number)
        return sum(int(batch["lengths"].sum()) for batch in loader)

    return epoch


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rates by cache and way, against the target."""
    axes = figure.add_subplot()
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    for place, way in enumerate(WAYS.values()):
        heights = [row["rate"] / 1e6 for row in rows if row["way"] == way]
        axes.bar([i + place * 0.25 for i in range(len(caches))], heights, 0.25, label=way)
    axes.set_xticks([i + 0.25 for i in range(len(caches))], caches)
    axes.axhline(1, color="grey", linestyle=":", label="target")
    axes.set_ylabel("million completion tokens/s, one core")
    axes.margins(y=0.25)
    axes.legend(loc="upper right", ncols=4)


if __name__ == "__main__":
    contenders.serve({"read": read})
    main()
