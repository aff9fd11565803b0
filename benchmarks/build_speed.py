"""Tokens a second of a build, against the bare body of the same model and TRL's precompute.

    python benchmarks/build_speed.py [--quick] [--case TEXT] [--rounds N] [--results DIR]

Models have random weights; the pairs' lengths are given or drawn. Contenders, in turns, each in a process of
its own with its model loaded and its tokens ready:

* body: the reference's body alone (no head, no statistics) over separate sequences, sorted by length, in
  batches of the same token budget as the build's;
* build: what a build does from pairs of token ids to finished shards, the sample of every position's
  distribution included, with the prompt scored once where that is possible (shared) or twice (separate);
* whole build: `tdpo.build_cache` from a text file and a saved model, imports excluded;
* TRL: the pass that `precompute_ref_log_probs` makes, one sum a sequence, with its batch size the best of a
  few; it takes the pairs in the order they come.

A prompt counts once for each of its completions, for every contender: its tokens are those of both sequences.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import contenders
import results
import workload

# Shape, lengths, pairs. The last is the one that "--quick" runs.
CASES = (
    ("d=256, 4 layers, V=32k", "1:1", 48),
    ("d=256, 4 layers, V=32k", "3:1", 24),
    ("d=256, 4 layers, V=32k", "mixture", 48),
    ("d=512, 12 layers, V=32k", "1:1", 24),
    ("d=512, 12 layers, V=32k", "3:1", 12),
    ("d=512, 12 layers, V=32k", "mixture", 32),
    ("d=512, 12 layers, V=128k", "1:1", 16),
)
CASES_GPU = tuple(
    ("1B: d=2048, 16 layers, V=128k", lengths, pairs)
    for lengths, pairs in (("1:1", 1024), ("3:1", 512), ("mixture", 1024))
)
QUICK = (("d=32, 2 layers, V=1k", "tiny", 6),)
BATCH_TOKENS = {False: 2048, True: 65536}
TRL_BATCHES = {False: (4, 8, 16), True: (8, 16, 32, 64)}

COLUMNS = {
    "shape": ("model", ""),
    "lengths": ("prompt : completion", ""),
    "tokens": ("tokens", ",.0f"),
    "body": ("body, tokens/s", ",.0f"),
    "shared": ("build, shared", ",.0f"),
    "separate": ("build, separate", ",.0f"),
    "whole": ("whole build", ",.0f"),
    "trl": ("TRL", ",.0f"),
    "of_body": ("shared / body", ".2f"),
    "separate_of_body": ("separate / body", ".2f"),
    "over_trl": ("shared / TRL", ".1f"),
    "peak": ("peak GB: build", ".2f"),
    "trl_peak": ("TRL", ".2f"),
}


def main() -> None:
    """Run every case and print a table."""
    parser = results.arguments(__doc__, rounds=3)
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    options = parser.parse_args()
    gpu = contenders.has_gpu()
    cases = QUICK if options.quick else CASES_GPU if gpu else CASES
    with_trl = importlib.util.find_spec("trl") is not None
    rows = []
    for shape, lengths, pairs in cases:
        if options.case in f"{shape}, {lengths}":
            print(f"{shape}, {lengths} ...", flush=True)
            rows.append(measure(shape, lengths, pairs, gpu, with_trl, options.rounds))
    notes = [
        "Targets: build at least 0.75 of the body's tokens/s and 3 times TRL's on a CPU; 0.85, 1.3 on a GPU.",
        "Rates are of the fastest repetition; ratios are medians over rounds.",
    ]
    if with_trl:
        sizes = ", ".join(f"{row['trl_batch']}" for row in rows)
        notes.append(f"TRL's batch size: the best of {TRL_BATCHES[gpu]}, by case {sizes}.")
    else:
        notes.append("TRL is not installed here, so it was left out.")
    results.finish("build_speed", options, rows, COLUMNS, notes, draw)


def measure(shape: str, lengths: str, pairs: int, gpu: bool, with_trl: bool, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    case = {
        "shape": shape,
        "lengths": lengths,
        "pairs": pairs,
        "batch_tokens": BATCH_TOKENS[gpu],
        "trl_batches": TRL_BATCHES[gpu],
    }
    tasks: dict[str, tuple[str, Mapping[str, Any]]] = {
        "body": ("body", case),
        "shared": ("build", case | {"prompt_sharing": "auto"}),
        "separate": ("build", case | {"prompt_sharing": "off"}),
        "whole": ("whole", case),
    }
    if with_trl:
        tasks["trl"] = ("trl", case)
    found = contenders.in_turns(__file__, tasks, rounds)
    tokens = workload.scored_tokens(workload.make_pairs(lengths, pairs, workload.SHAPES[shape]["vocab"]))
    memory = "gpu" if gpu else "rss"
    row: dict[str, Any] = {"shape": shape, "lengths": lengths, "pairs": pairs, "tokens": tokens}
    row |= {label: tokens / contenders.best(one.seconds) for label, one in found.items()}
    row |= {
        "of_body": contenders.ratio(found["body"].seconds, found["shared"].seconds),
        "separate_of_body": contenders.ratio(found["body"].seconds, found["separate"].seconds),
        "peak": found["shared"].peak["peak"][memory] / 1e9,
        "seconds": {label: one.seconds for label, one in found.items()},
        "memory": {label: one.peak for label, one in found.items()},
    }
    if with_trl:
        row |= {
            "over_trl": contenders.ratio(found["trl"].seconds, found["shared"].seconds),
            "trl_peak": found["trl"].peak["peak"][memory] / 1e9,
            "trl_batch": found["trl"].measured[0]["batch"],
        }
    return row


# --- Contenders ---------------------------------------------------------------------------------------------


def body(case: dict[str, Any]) -> contenders.Repeat:
    """The reference's body over the pairs' separate sequences."""
    import torch

    from tdpo.core.scoring.layout import lay_out

    model, pairs = prepare(case)

    def width(pair: Any) -> int:
        return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))

    waiting = sorted(pairs, key=width, reverse=True)
    batches = []
    while waiting:
        size = max(1, case["batch_tokens"] // (2 * width(waiting[0])))
        batches.append(waiting[:size])
        waiting = waiting[size:]

    def work() -> None:
        with torch.inference_mode():
            for batch in batches:
                layout = lay_out(batch)
                model.base_model(
                    input_ids=layout.input_ids.to(model.device),
                    attention_mask=layout.attention_mask.to(model.device),
                    use_cache=False,
                )

    return contenders.timed(work)


def build(case: dict[str, Any]) -> contenders.Repeat:
    """From pairs to the finished shards of a cache."""
    model, pairs = prepare(case)
    statistics = workload.statistics_of(model)
    options = {name: case[name] for name in ("batch_tokens", "prompt_sharing")}
    scorer = workload.make_scorer(model, statistics, **options)
    cache = Path(case["folder"]) / "cache"

    def work() -> None:
        workload.write_cache(scorer, statistics, pairs, cache)

    return contenders.timed(work)


def whole(case: dict[str, Any]) -> contenders.Repeat:
    """All of ``tdpo cache build``, but for starting Python and importing."""
    return contenders.timed(workload.whole_build(case))


def trl(case: dict[str, Any]) -> contenders.Repeat:
    """TRL's pass over the pairs, with the best batch size of a few."""
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        """The pairs have their tokens; the pass waits until it is asked for."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def precompute(self, batch: int, pairs: int | None = None) -> Any:
            some = self.train_dataset.select(range(min(pairs or 10**9, len(self.train_dataset))))
            return super()._precompute_ref_logps(some, "train", batch)

    model, pairs = prepare(case)
    folder = Path(case["folder"])
    # What it computed once it would read from a file the next time.
    datasets.disable_caching()
    datasets.disable_progress_bars()
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [{name: getattr(pair, name).tolist() for name in columns} for pair in pairs]
    options = DPOConfig(
        str(folder),
        precompute_ref_log_probs=True,
        max_length=None,
        bf16=model.device.type == "cuda",
        use_cpu=model.device.type == "cpu",
        report_to="none",
    )
    trainer = Tokenised(
        model,
        args=options,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=workload.make_tokenizer(model.config.vocab_size),
    )

    def seconds(batch: int) -> float:
        start = time.perf_counter()
        trainer.precompute(batch)
        contenders.wait_for_gpu()
        return time.perf_counter() - start

    # The first batch pays for what is set up on first use.
    trainer.precompute(case["trl_batches"][0], pairs=case["trl_batches"][0])
    found = {batch: seconds(batch) for batch in case["trl_batches"]}
    batch = min(found, key=found.__getitem__)

    def work() -> dict[str, Any]:
        scored = trainer.precompute(batch)
        assert len(scored["ref_chosen_logps"]) == len(pairs)
        return {"batch": batch, "by_batch": found}

    return contenders.timed(work)


def prepare(case: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The model and the pairs of a case."""
    model = workload.make_model(case["shape"])
    return model, workload.make_pairs(case["lengths"], case["pairs"], model.config.vocab_size)


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Tokens a second of every contender, by case."""
    axes = figure.add_subplot()
    labels = {"body": "body alone", "shared": "build, prompt once", "separate": "build, prompt twice",
              "whole": "whole build", "trl": "TRL precompute"}  # fmt: skip
    shown = [label for label in labels if all(label in row for row in rows)]
    width = 0.8 / len(shown)
    for place, label in enumerate(shown):
        heights = [row[label] / row["body"] for row in rows]
        axes.bar([i + place * width for i in range(len(rows))], heights, width, label=labels[label])
    axes.set_xticks(
        [i + 0.4 - width / 2 for i in range(len(rows))],
        [f"{row['shape'].replace(', ', chr(10))}\n{row['lengths']}" for row in rows],
        fontsize=7,
    )
    axes.axhline(0.75, color="grey", linestyle=":", label="target of the build")
    axes.set_ylabel("tokens/s, of the body's")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)


CONTENDERS: dict[str, Callable[[dict[str, Any]], contenders.Repeat]] = {
    "body": body,
    "build": build,
    "whole": whole,
    "trl": trl,
}

if __name__ == "__main__":
    contenders.serve(CONTENDERS)
    main()
