"""What the policies have in common: one reference, and for every seed its pairs, caches and prompts."""

import random
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import tdpo
from tdpo.core.demo.corpus import reviews
from tdpo.core.demo.folder import read_jsonl, write_jsonl
from tdpo.core.demo.pairs import prompts_from, sample_pairs
from tdpo.core.demo.reference import new_model, train_model, train_tokenizer
from tdpo.core.quiet import quiet_libraries

from .plan import BY_NAME, CACHES, Plan

REFERENCE = "reference"
_CONTRAST = "contrast"


def prepare_reference(plan: Plan, work: Path) -> None:
    """Train the reference, from nothing, on reviews that no seed sees again; nothing where it is there."""
    place = work / REFERENCE
    if place.exists():
        return
    texts = reviews(plan.corpus, seed=0)
    tokenizer = train_tokenizer(texts, plan.vocabulary)
    model = new_model(tokenizer, hidden=plan.hidden, layers=plan.layers, seed=0)
    train_model(
        model,
        tokenizer,
        texts,
        epochs=plan.corpus_epochs,
        learning_rate=plan.corpus_learning_rate,
        seed=0,
        quiet=True,
    )
    whole = work / f"{REFERENCE}.tmp"
    shutil.rmtree(whole, ignore_errors=True)
    with quiet_libraries():
        model.save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    whole.rename(place)


def load(place: Path) -> Any:
    """A model without a sound."""
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(place)


def load_tokenizer(work: Path) -> Any:
    """The reference's tokenizer, which all policies share."""
    return AutoTokenizer.from_pretrained(work / REFERENCE)


def seed_folder(work: Path, seed: int) -> Path:
    """Where a seed's data and caches lie."""
    return work / f"seed-{seed}"


def prepare_seed(plan: Plan, work: Path, seed: int) -> None:
    """Draw a seed's pairs and prompts, and cache the reference on them.

    What a seed varies: the prompts, both completions, the noise of the labels, the draws in the cache. Each
    step that is finished is kept.
    """
    folder = seed_folder(work, seed)
    draw_data(plan, work, seed)
    kinds = {"sparse"} | {BY_NAME[name].cache for name in plan.series}
    for kind in sorted(kinds):
        build(work, folder, "train", kind, seed)
    if any(BY_NAME[name].compares_estimates for name in plan.series):
        kinds |= {"sparse", "truncated"}
    for kind in sorted(kinds | {"exact"}):
        build(work, folder, "heldout", kind, seed)


def draw_data(plan: Plan, work: Path, seed: int) -> None:
    """Write train.jsonl, heldout.jsonl and prompts.jsonl of a seed; nothing where they are there."""
    folder = seed_folder(work, seed)
    if (folder / "prompts.jsonl").exists():
        return
    model, tokenizer = load(work / REFERENCE), load_tokenizer(work)
    counts = {"train": plan.pairs, "heldout": plan.heldout, "prompts": plan.prompts}
    texts = iter(reviews(sum(counts.values()), seed=1000 + seed))
    # One generator deals out the seeds of the independent draws below.
    deal = random.Random(seed)
    for name, count in counts.items():
        prompts = prompts_from([next(texts) for _ in range(count)], deal.getrandbits(30))
        rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
        if name != "prompts":
            rows = list(
                sample_pairs(
                    model,
                    tokenizer,
                    prompts,
                    temperature=plan.label_temperature,
                    seed=deal.getrandbits(30),
                    what=name,
                    quiet=True,
                )
            )
        whole = folder / f"{name}.tmp"
        write_jsonl(whole, rows)
        whole.rename(folder / f"{name}.jsonl")


def build(work: Path, folder: Path, part: str, kind: str, seed: int) -> None:
    """One cache of a seed: ``train`` or ``heldout`` pairs, of a kind of ``CACHES``."""
    data = folder / f"{part}.jsonl"
    # One shard, and the same groups of rows whatever the kind: the order of the data depends on them.
    rows = len(read_jsonl(data))
    out = folder / f"{part}-{kind}"
    tdpo.build_cache(work / REFERENCE, data, out, shard_rows=rows, seed=seed, quiet=True, **CACHES[kind])


def fit(
    plan: Plan,
    cache: Path,
    output: Path,
    *,
    seed: int,
    learning_rate: float,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """``tdpo.fit`` with what all policies share; the seed is that of the data's order."""
    return tdpo.fit(
        cache=cache,
        output=str(output),
        overwrite=True,
        quiet=True,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=plan.warmup,
        seed=seed,
        # On the CPU whatever the machine has, as sampling is: what differs is the objective.
        training={"use_cpu": True, "save_only_model": True, **(training or {})},
        **options,
    )


def add_contrast(plan: Plan, folder: Path, seed: int, learning_rate: float) -> None:
    """Add to a seed's cache what TIS-DPO's pair of models says: DPO on the labels, and on them exchanged.

    They are trained on the seed's own pairs, with the settings of every other policy.
    """
    cache = folder / "train-sparse"
    if (score := tdpo.open_cache(cache).manifest.scores.get(_CONTRAST)) is not None and score.complete:
        return
    sides = {"positive": False, "negative": True}
    shared: dict[str, Any] = {"seed": seed, "learning_rate": learning_rate, "set": {"beta": plan.pilot_beta}}
    for side, swap in sides.items():
        fit(plan, cache, folder / side, plugin="dpo", swap=swap, **shared)
    with quiet_libraries():
        tdpo.add_statistics(cache, _CONTRAST, quiet=True, **{side: str(folder / side) for side in sides})
    for side in sides:
        shutil.rmtree(folder / side)
