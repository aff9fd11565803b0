"""Peak memory and time as the rows, the vocabulary and the lengths grow.

    python benchmarks/scaling.py [--quick] [--case TEXT] [--rounds N] [--results DIR]

Every size is a process of its own. Memory is what the work adds to a process that has imported everything
and, for training, loaded its model.

* build by rows: `tdpo.build_cache` over 1,000 to 20,000 rows of one file, with a model so small that what
  grows with the rows would show. Memory has to stop growing once a shard is being scored while the one before
  is written; time has to grow as the tokens do.
* train by rows: an epoch of TDPO2 over 1,000 and 10,000 rows of a cache, with the same small model: the same.
* train by V: steps with 8,000 to 256,000 logits; what grows is the head's work, its weights and what an
  optimiser keeps of them, and a chunk of logits up to a limit.
* train by prompt:completion: steps of one pair, its two sequences of 256 to 4,096 tokens: time has to grow as
  the tokens do, as far as attention lets it, whose work for a token grows with the length.
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import contenders
import results
import training
import workload

SMALL, SHORT = "d=64, 2 layers, V=2k", "short"
BUILD_ROWS = (1_000, 2_000, 5_000, 10_000, 20_000)
TRAIN_ROWS = (1_000, 10_000)
VOCABULARIES = tuple(f"d=256, 4 layers, V={size}k" for size in (8, 32, 128, 256))
LENGTHS = ("128:128", "256:256", "512:512", "1024:1024", "2048:2048")
OF_LENGTHS = {False: "d=256, 4 layers, V=32k", True: "1B: d=2048, 16 layers, V=128k"}

COLUMNS = {
    "job": ("job", ""),
    "size": ("size", ""),
    "tokens": ("tokens", ",.0f"),
    "seconds": ("seconds", ",.2f"),
    "rate": ("tokens/s", ",.0f"),
    "added": ("peak MB added", ",.0f"),
    "peak": ("peak MB", ",.0f"),
}

Sizes = dict[str, tuple[str, dict[str, Any]]]
"""Size -> contender and its case."""


def main() -> None:
    """Run every job at every size and print a table."""
    parser = results.arguments(__doc__, rounds=2)
    parser.add_argument("--case", default="", help="only jobs whose name holds this text")
    options = parser.parse_args()
    gpu = contenders.has_gpu()
    rows: list[dict[str, Any]] = []
    for job, sizes in jobs(options.quick, gpu).items():
        if options.case in job:
            print(f"{job} ...", flush=True)
            rows += measure(job, sizes, gpu, options.rounds)
            results.save("scaling", options, rows, COLUMNS, [])
    notes = [
        "Targets: peak memory flat from 1,000 rows on, time linear in tokens.",
        *(spread(job, [row for row in rows if row["job"] == job]) for job in by_job(rows)),
    ]
    results.finish("scaling", options, rows, COLUMNS, notes, draw)


def jobs(quick: bool, gpu: bool) -> dict[str, Sizes]:
    """Every job's sizes."""
    build_rows, train_rows = ((40, 80), (16, 32)) if quick else (BUILD_ROWS, TRAIN_ROWS)
    vocabularies = (SMALL,) if quick else VOCABULARIES
    lengths = ("8:8",) if quick else LENGTHS
    of_lengths = SMALL if quick else OF_LENGTHS[gpu]
    pairs, steps = 32 if gpu else 2, 4 if gpu else 2
    return {
        "build by rows": {
            f"{rows:,}": ("build", {"shape": SMALL, "lengths": SHORT, "pairs": rows, "batch_tokens": 8192})
            for rows in build_rows
        },
        "train by rows": {
            f"{rows:,}": ("train", step(SMALL, SHORT, 8, rows // 8, gpu)) for rows in train_rows
        },
        "train by V": {
            f"V={workload.SHAPES[shape]['vocab']:,}": ("train", step(shape, "1:1", pairs, steps, gpu))
            for shape in vocabularies
        },
        "train by prompt:completion": {
            size: ("train", step(of_lengths, size, 1, steps, gpu)) for size in lengths
        },
    }


def step(shape: str, lengths: str, pairs: int, steps: int, gpu: bool) -> dict[str, Any]:
    """A case of :mod:`training`."""
    return {
        "shape": shape,
        "lengths": lengths,
        "pairs": pairs,
        "steps": steps,
        "plugin": "tdpo2",
        "distribution": "sparse",
        "distributions": ["sparse"],
        "batch_tokens": 2048,
        "checkpointing": gpu,
        "options": {},
    }


def measure(job: str, sizes: Sizes, gpu: bool, rounds: int) -> list[dict[str, Any]]:
    """A row of the table for every size."""
    memory = "gpu" if gpu and job != "build by rows" else "rss"
    rows = []
    with tempfile.TemporaryDirectory(prefix="tdpo-benchmark-") as shared:
        tasks: Sizes = {}
        for place, (size, (contender, case)) in enumerate(sizes.items()):
            tasks[size] = (contender, case | {"shared": f"{shared}/{place}"})
            if contender == "train":
                contenders.prepare(__file__, "prepare", tasks[size][1])
        # A build's first time is like all of its times, but for what grows with the rows.
        warm_up = job != "build by rows"
        run = contenders.one_by_one if gpu else contenders.in_turns
        found = run(__file__, tasks, rounds, warm_up=warm_up)
    for size, one in found.items():
        case = sizes[size][1]
        vocab = workload.SHAPES[case["shape"]]["vocab"]
        pairs = workload.each_pair(case["lengths"], case["pairs"] * case.get("steps", 1), vocab)
        tokens, seconds = workload.scored_tokens(pairs), contenders.best(one.seconds)
        peak, before = one.peak["peak"][memory] / 1e6, one.peak["before"][memory] / 1e6
        rows.append(
            {
                "job": job,
                "size": size,
                "tokens": tokens,
                "seconds": seconds,
                "rate": tokens / seconds,
                "peak": peak,
                "added": peak - before,
                "all_seconds": one.seconds,
            }
        )
    return rows


def by_job(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The jobs that have rows, in order."""
    return list(dict.fromkeys(row["job"] for row in rows))


def spread(job: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """How far a job's sizes are apart, in a sentence."""
    rates, peaks = ([row[what] for row in rows] for what in ("rate", "peak"))
    if job == "build by rows":
        # The first size has no shard to score while another is written.
        peaks = peaks[1:]
    return (
        f"{job}: time for a token differs by a factor of {max(rates) / min(rates):.2f}, peak memory by "
        f"{max(peaks) / min(peaks) - 1:.1%}."
    )


def build(case: dict[str, Any]) -> contenders.Repeat:
    """A whole build."""
    return contenders.timed(workload.whole_build(case))


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Memory and time of every job by its sizes."""
    names = by_job(rows)
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, job in enumerate(names):
        of_job = [row for row in rows if row["job"] == job]
        tokens = [row["tokens"] / 1e3 for row in of_job]
        for axes, what, label in zip(
            grid[:, column], ("peak", "seconds"), ("peak MB", "seconds"), strict=True
        ):
            if job == "train by V":
                axes.plot([row["size"][2:] for row in of_job], [row[what] for row in of_job], "o-")
            else:
                axes.plot(tokens, [row[what] for row in of_job], "o-")
            axes.set_ylim(0, 1.1 * max(row[what] for row in of_job))
            axes.set_ylabel(label, fontsize=7)
            axes.tick_params(labelsize=6)
        grid[0, column].set_title(job, fontsize=8)
        grid[1, column].set_xlabel("V" if job == "train by V" else "thousand tokens", fontsize=7)


if __name__ == "__main__":
    contenders.serve({"build": build, "prepare": training.prepare, "train": training.ours})
    main()
