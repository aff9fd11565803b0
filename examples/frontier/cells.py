"""One policy from its cache to its figures, and the pilots that fix the learning rate."""

import shutil
import time
from pathlib import Path
from typing import Any

from tdpo.core.demo.corpus import reviews
from tdpo.core.demo.folder import read_jsonl
from tdpo.core.demo.pairs import agreement
from tdpo.core.demo.reference import mean_nats

from .measure import measure_pairs, measure_samples
from .plan import BY_NAME, TOP_K, Cell, Plan
from .prepare import REFERENCE, add_contrast, fit, load, load_tokenizer, prepare_seed, seed_folder

# Of sampling, apart from the seeds of the data.
_MEASURING = 7000
_UNSEEN = 400  # reviews that tell how good a language model the reference is


def run_pilot(plan: Plan, work: Path, learning_rate: float) -> dict[str, Any]:
    """DPO on the pilot seed with one learning rate: its loss on held-out pairs, and its reward."""
    folder, output = seed_folder(work, plan.pilot_seed), work / "policies" / f"pilot-{learning_rate:g}"
    result = fit(
        plan,
        folder / "train-sparse",
        output,
        seed=plan.pilot_seed,
        learning_rate=learning_rate,
        plugin="dpo",
        set={"beta": plan.pilot_beta},
        eval_cache=[str(folder / "heldout-sparse")],
    )
    found = _sampled(plan, work, plan.pilot_seed, load(output))
    shutil.rmtree(output)
    return {
        "series": "pilot",
        "beta": plan.pilot_beta,
        "seed": plan.pilot_seed,
        "learning_rate": learning_rate,
        "heldout_loss": result.metrics["eval_loss"],
        **found,
    }


def run_seed(plan: Plan, work: Path, seed: int, learning_rate: float) -> dict[str, Any]:
    """Make a seed's data and caches; the figures of the reference itself on its prompts."""
    prepare_seed(plan, work, seed)
    if any("tis" in BY_NAME[name].weighting for name in plan.series):
        add_contrast(plan, seed_folder(work, seed), seed, learning_rate)
    rows = read_jsonl(seed_folder(work, seed) / "train.jsonl")
    nats = mean_nats(load(work / REFERENCE), load_tokenizer(work), reviews(_UNSEEN, seed=2000 + seed))
    return {
        "series": "reference",
        "beta": 0.0,
        "seed": seed,
        **_sampled(plan, work, seed, None),
        "pairs": len(rows),
        "agreement": agreement(rows),
        "nats_a_token": nats,
    }


def run_cell(plan: Plan, work: Path, cell: Cell, learning_rate: float) -> dict[str, Any]:
    """Train, sample and measure one policy, which is not kept."""
    folder, output = seed_folder(work, cell.seed), work / "policies" / cell.name
    series, started = cell.series, time.process_time()
    shutil.rmtree(output, ignore_errors=True)
    result = fit(
        plan,
        folder / f"train-{series.cache}",
        output,
        seed=cell.seed,
        learning_rate=learning_rate,
        plugin=series.plugin,
        weighting=list(series.weighting),
        set={"beta": cell.beta, **series.options},
        save_steps=plan.save_steps,
        training={"save_total_limit": 1000},
    )
    places = {int(place.name.rpartition("-")[2]): place for place in output.glob("checkpoint-*")}
    places[result.steps] = output
    curves, accuracy = _held_out(places, folder, with_estimates=series.compares_estimates)
    figures = _sampled(plan, work, cell.seed, load(output))
    shutil.rmtree(output)
    return {
        "series": series.name,
        "beta": cell.beta,
        "seed": cell.seed,
        **figures,
        "accuracy": accuracy,
        "curves": curves,
        "cpu_seconds": time.process_time() - started,
    }


def _held_out(
    places: dict[int, Path], folder: Path, *, with_estimates: bool
) -> tuple[dict[str, list[Any]], float]:
    """The KL of chosen and rejected held-out completions at every saved step, and the last one's accuracy."""
    curves: dict[str, list[Any]] = {"step": sorted(places)}
    kinds = {"exact": "", **({"sparse": "_sparse", "truncated": "_truncated"} if with_estimates else {})}
    accuracy = 0.0
    for step in curves["step"]:
        policy = load(places[step])
        for kind, ending in kinds.items():
            found = measure_pairs(policy, folder / f"heldout-{kind}")
            for side in ("chosen", "rejected"):
                curves.setdefault(side + ending, []).append(found[side])
            accuracy = found["accuracy"]
    return curves, accuracy


def _sampled(plan: Plan, work: Path, seed: int, policy: Any) -> dict[str, Any]:
    """Figures on own samples; those of the reference where ``policy`` is None."""
    reference = load(work / REFERENCE)
    prompts = [row["prompt"] for row in read_jsonl(seed_folder(work, seed) / "prompts.jsonl")]
    policy = reference if policy is None else policy
    tokenizer = load_tokenizer(work)
    return measure_samples(policy, reference, tokenizer, prompts, seed=_MEASURING + seed, top_k=TOP_K)
