"""Time and memory of a training step: ours from a cache, TRL's DPOTrainer, TDPO2 with both models in memory.

    python benchmarks/training_step.py [--quick] [--case TEXT] [--only NAMES] [--rounds N] [--results DIR]

Models have random weights; the pairs' lengths are given or drawn. Each contender is a process of its own with
its policy loaded, and does a few optimiser steps a repetition; on a CPU they take turns, on a GPU, which has
not the memory of all of them, each does all of its repetitions before the next starts. Timed is all from
reading the first pairs to the end of the last step: data, forward, backward, clipping, optimiser, figures.

* DPO: `tdpo fit --plugin dpo` from a cache, as it trains by itself, and, in some of the cases, with its
  layouts of pairs one by one;
* TDPO2: the same with the KL from the cache's sparse sample, or, in one of the cases, from its exact tier;
* TRL DPO: its DPOTrainer with the reference's log-probabilities precomputed, the same ones;
* online TDPO2: a plain loop with the reference in memory and the KL over full logits.
"""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import contenders
import results
import training
import workload

# Shape, lengths, pairs of a step, steps of a repetition, and the extras of tasks_of.
CASES = (
    ("d=256, 4 layers, V=32k", "1:1", 4, 1, "exact"),
    ("d=256, 4 layers, V=32k", "mixture", 8, 1, "layouts"),
    ("d=256, 4 layers, V=128k", "1:1", 4, 1, ""),
)
_1B, _8B = "1B: d=2048, 16 layers, V=128k", "8B: d=4096, 32 layers, V=128k"
CASES_GPU = (
    (_1B, "256:256", 16, 4, "exact"),
    (_1B, "384:128", 16, 4, ""),
    (_1B, "128:384", 16, 4, ""),
    (_1B, "1024:1024", 4, 4, ""),
    (_1B, "1536:512", 4, 4, "layouts"),
    (_1B, "512:1536", 4, 4, ""),
    (_1B, "4096:4096", 1, 4, ""),
    (_1B, "6144:2048", 1, 4, ""),
    (_1B, "2048:6144", 1, 4, ""),
    (_1B, "mixture", 32, 4, "layouts"),
    (_8B, "256:256", 8, 2, ""),
    (_8B, "1536:512", 2, 2, ""),
    (_8B, "mixture", 16, 2, ""),
)
QUICK = (("d=32, 2 layers, V=1k", "tiny", 2, 2, "exact, layouts"),)

DPO: dict[str, Any] = {"plugin": "dpo", "distribution": "sparse"}
TDPO2 = DPO | {"plugin": "tdpo2"}
# Of a batch budget: so much less than a step's pairs that there are several passes.
BATCH_TOKENS = {False: 1024, True: 4096}

COLUMNS = {
    "shape": ("model", ""),
    "lengths": ("prompt : completion", ""),
    "who": ("contender", ""),
    "pairs_rate": ("pairs/s", ",.2f"),
    "rate": ("tokens/s", ",.0f"),
    "time_of_dpo": ("time / DPO's", ".2f"),
    "peak": ("peak GB", ".2f"),
    "added": ("of it added", ".2f"),
    "peak_of_dpo": ("peak / DPO's", ".2f"),
    "loss": ("loss", ".5f"),
}


def main() -> None:
    """Run every case and print a table."""
    parser = results.arguments(__doc__, rounds=3)
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="only these contenders, such as 'DPO,TRL DPO'"
    )
    options = parser.parse_args()
    gpu = contenders.has_gpu()
    cases = QUICK if options.quick else CASES_GPU if gpu else CASES
    only = [name for name in options.only.split(",") if name]
    rows: list[dict[str, Any]] = []
    for case in cases:
        if options.case in f"{case[0]}, {case[1]}":
            print(f"{case[0]}, {case[1]} ...", flush=True)
            rows += measure(case, gpu, only, options.rounds)
            results.save("training_step", options, rows, COLUMNS, [])
    notes = [
        "Rates are of the fastest repetition; times as parts of DPO's are medians of rounds. Peak memory is "
        f"{'what torch allocated' if gpu else 'the resident set'} at most; added: since the models were "
        "loaded.",
        *verdicts(rows, gpu),
    ]
    if importlib.util.find_spec("trl") is None:
        notes.append("TRL is not installed here, so it was left out.")
    results.finish("training_step", options, rows, COLUMNS, notes, draw)


def measure(case: Sequence[Any], gpu: bool, only: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A case's rows of the table, one a contender."""
    shape, lengths, pairs, steps, extras = case
    tasks = tasks_of(gpu, extras)
    if only:
        tasks = {name: task for name, task in tasks.items() if name in only}
    with tempfile.TemporaryDirectory(prefix="tdpo-benchmark-") as shared:
        parameters = {
            "shape": shape,
            "lengths": lengths,
            "pairs": pairs,
            "steps": steps,
            "shared": shared,
            "batch_tokens": 16384 if gpu else 2048,
            "distributions": sorted({task[1].get("distribution", "sparse") for task in tasks.values()})[::-1],
            # Without it the longest rows fit nowhere; TRL has it on by itself.
            "checkpointing": gpu,
            "options": {},
        }
        contenders.prepare(__file__, "prepare", parameters)
        run = contenders.one_by_one if gpu else contenders.in_turns
        found = run(__file__, {name: (who, parameters | more) for name, (who, more) in tasks.items()}, rounds)
    tokens = workload.scored_tokens(training.pairs_of(parameters)) / steps
    memory = "gpu" if gpu else "rss"
    return [
        {
            "shape": shape,
            "lengths": lengths,
            "pairs": pairs,
            "tokens": tokens,
            "who": name,
            "pairs_rate": pairs * steps / contenders.best(one.seconds),
            "rate": tokens * steps / contenders.best(one.seconds),
            "time_of_dpo": contenders.ratio(one.seconds, found["DPO"].seconds) if "DPO" in found else None,
            "peak": one.peak["peak"][memory] / 1e9,
            "added": (one.peak["peak"][memory] - one.peak["before"][memory]) / 1e9,
            "peak_of_dpo": (
                one.peak["peak"][memory] / found["DPO"].peak["peak"][memory] if "DPO" in found else None
            ),
            "loss": one.measured[0]["loss"],
            "seconds": [seconds / steps for seconds in one.seconds],
            "memory": one.peak,
        }
        for name, one in found.items()
    ]


def tasks_of(gpu: bool, extras: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the table -> contender and what its case says besides.

    With ``layouts`` among the ``extras`` our layouts one by one, with ``exact`` the KL from the exact tier.
    """
    layouts: dict[str, dict[str, Any]] = {
        "separate": {"prompt_sharing": "off", "packing": "off"},
        "shared": {"prompt_sharing": "on", "packing": "off"},
        "packed": {"prompt_sharing": "on", "packing": "on"},
        f"--batch-tokens {BATCH_TOKENS[gpu]}": {"batch_tokens": BATCH_TOKENS[gpu]},
    }
    tasks = {"DPO": ("ours", DPO)}
    if "layouts" in extras:
        tasks |= {f"DPO {name}": ("ours", DPO | {"options": options}) for name, options in layouts.items()}
    if importlib.util.find_spec("trl") is not None:
        tasks["TRL DPO"] = ("trl", {})
        if gpu and importlib.util.find_spec("liger_kernel") is not None:
            tasks["TRL DPO Liger kernels"] = ("trl", {"options": {"liger": True}})
    tasks["TDPO2"] = ("ours", TDPO2)
    if "exact" in extras:
        tasks["TDPO2 exact"] = ("ours", TDPO2 | {"distribution": "exact"})
    return tasks | {"online TDPO2": ("online", {})}


# --- What was asked for -------------------------------------------------------------------------------------


def verdicts(rows: Sequence[Mapping[str, Any]], gpu: bool) -> list[str]:
    """A sentence a case and target: what was asked for, and what there is."""
    lines = []
    for case in dict.fromkeys((row["shape"], row["lengths"]) for row in rows):
        of_case = {row["who"]: row for row in rows if (row["shape"], row["lengths"]) == case}
        where = ", ".join(case)
        for who, other, faster, memory in targets(*case, gpu):
            if who in of_case and other in of_case:
                lines.append(f"{where}: {compare(of_case[who], of_case[other], faster, memory)}")
        exact, online = (of_case.get(who) for who in ("TDPO2 exact", "online TDPO2"))
        if exact and online:
            apart, most = abs(exact["loss"] - online["loss"]), 1e-2 if gpu else 1e-5
            lines.append(
                f"{where}: the exact tier's loss is {apart:.1e} from that of online TDPO2 "
                f"(target {most:g}: {met(apart <= most)})."
            )
    return lines


def targets(shape: str, lengths: str, gpu: bool) -> list[tuple[str, str, float | None, float | None]]:
    """Who, against whom, how many times faster at least, and how much of its memory at most."""
    prompt, completion = (workload.sizes_of(lengths)[part] for part in ("prompt", "completion"))
    found: list[tuple[str, str, float | None, float | None]] = [("TDPO2", "DPO", 1 / 1.10, 1.05)]
    if not gpu:
        found.append(("DPO", "TRL DPO", 5, 0.25))
        if "V=128k" in shape:
            found.append(("TDPO2", "online TDPO2", 4, 0.35))
        return found
    found.append(("TDPO2", "online TDPO2", 1.8, 0.5))
    if isinstance(prompt, tuple):
        found.append(("DPO", "TRL DPO", 2, 0.9))
    elif prompt >= completion:
        found.append(("DPO", "TRL DPO", 1.25 if prompt == completion else 1.5, 0.9))
    return found


def compare(
    one: Mapping[str, Any], other: Mapping[str, Any], faster: float | None, memory: float | None
) -> str:
    """How two rows stand to each other, and whether that is what was asked for."""
    times = contenders.ratio(other["seconds"], one["seconds"])
    part, added = (one[what] / other[what] for what in ("peak", "added"))
    return (
        f"{one['who']} takes {1 / times:.2f} of the time of {other['who']} "
        f"({times:.2f} times as fast; target {faster:.2f}: {met(times >= faster)}) "
        f"and {part:.2f} of its peak memory (target {memory:g}: {met(part <= memory)}; "
        f"{added:.2f} of what it adds)."
    )


def met(target: bool) -> str:
    """In a word."""
    return "met" if target else "missed"


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tokens a second and peak memory of every contender, by case."""
    cases = list(dict.fromkeys((row["shape"], row["lengths"]) for row in rows))
    names = list(dict.fromkeys(row["who"] for row in rows))
    width = 0.8 / len(names)
    places = {case: place for place, case in enumerate(cases)}
    for axes, what, label in zip(
        figure.subplots(1, 2), ("rate", "peak"), ("tokens/s", "peak memory, GB"), strict=True
    ):
        for nth, name in enumerate(names):
            of_name = [row for row in rows if row["who"] == name]
            at = [places[row["shape"], row["lengths"]] + nth * width for row in of_name]
            axes.bar(at, [row[what] for row in of_name], width, label=name)
        axes.set_ylabel(label)
        axes.set_xticks(
            [i + 0.4 - width / 2 for i in range(len(cases))],
            [f"{shape.replace(', ', chr(10))}\n{lengths}" for shape, lengths in cases],
            fontsize=6,
        )
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=5)


if __name__ == "__main__":
    contenders.serve(training.CONTENDERS)
    main()
