"""Synthetic work: models of given shapes with random weights, pairs of given lengths, caches of them."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdpo.cache.pairs import Pair

UNKNOWN, END, PAD = 0, 1, 2
FIRST_WORD = 3
SHARD_ROWS = 1024

SHAPES: dict[str, dict[str, int]] = {
    "d=32, 2 layers, V=1k": {"d": 32, "layers": 2, "heads": 2, "vocab": 1_000},
    "d=64, 2 layers, V=2k": {"d": 64, "layers": 2, "heads": 2, "vocab": 2_000},
    "d=512, 12 layers, V=32k": {"d": 512, "layers": 12, "heads": 8, "vocab": 32_000},
    "d=512, 12 layers, V=128k": {"d": 512, "layers": 12, "heads": 8, "vocab": 128_000},
    "1B: d=2048, 16 layers, V=128k": {"d": 2048, "layers": 16, "heads": 32, "vocab": 128_000},
    "8B: d=4096, 32 layers, V=128k": {"d": 4096, "layers": 32, "heads": 32, "vocab": 128_000},
} | {
    f"d=256, 4 layers, V={size}k": {"d": 256, "layers": 4, "heads": 4, "vocab": size * 1000}
    for size in (8, 32, 128, 256)
}
"""A Llama's sizes, by the name that tables show."""

# Prompt and completion lengths in tokens: fixed, or (median, sigma) of a log-normal clipped to 8 .. 1024.
# Those of the mixture are like the multi-turn dialogues of Anthropic's HH.
LENGTHS: dict[str, dict[str, Any]] = {
    "tiny": {"prompt": 6, "completion": 5},
    "short": {"prompt": 16, "completion": 16},
    "1:1": {"prompt": 128, "completion": 128},
    "3:1": {"prompt": 384, "completion": 128},
    "1:3": {"prompt": 128, "completion": 384},
    "mixture": {"prompt": (120, 0.8), "completion": (60, 0.8)},
}


def sizes_of(lengths: str) -> dict[str, Any]:
    """Those of :data:`LENGTHS`, or of ``"prompt:completion"`` in tokens, such as ``"1024:256"``."""
    if lengths in LENGTHS:
        return LENGTHS[lengths]
    prompt, completion = map(int, lengths.split(":"))
    return {"prompt": prompt, "completion": completion}


def make_pairs(lengths: str, count: int, vocab: int, seed: int = 0) -> list[Pair]:
    """Pairs of random words; each completion's last token ends it."""
    return list(each_pair(lengths, count, vocab, seed))


def each_pair(lengths: str, count: int, vocab: int, seed: int = 0) -> Iterator[Pair]:
    """The same, one at a time."""
    rng = np.random.default_rng(seed)
    sizes = sizes_of(lengths)

    def words(number: int) -> np.ndarray:
        return rng.integers(FIRST_WORD, vocab, number)

    for row in range(count):
        prompt = words(draw_length(rng, sizes["prompt"]))
        chosen, rejected = (
            np.append(words(draw_length(rng, sizes["completion"]) - 1), END) for _ in ("chosen", "rejected")
        )
        yield Pair.make(row, prompt, chosen, rejected)


def draw_length(rng: np.random.Generator, size: Any) -> int:
    """A length in tokens: the number given, or one drawn around (median, sigma)."""
    if isinstance(size, int):
        return size
    median, sigma = size
    return int(np.clip(median * np.exp(sigma * rng.standard_normal()), 8, 1024))


def scored_tokens(pairs: Iterable[Pair]) -> int:
    """Tokens of both sequences of every pair, a prompt counted with each of its completions.

    The unit of every contender's rate, however it lays the pairs out: what it computes only once, or pads,
    changes its seconds and not its tokens.
    """
    return sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)


def write_text(pairs: Iterable[Pair], path: Path) -> Path:
    """The pairs as JSON lines of text, which :func:`make_tokenizer`'s tokenizer turns back into their ids."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {"prompt": _text(pair.prompt_ids)}
            # The end is what the build appends by itself.
            row["chosen"], row["rejected"] = (
                " " + _text(ids[:-1]) for ids in (pair.chosen_ids, pair.rejected_ids)
            )
            file.write(json.dumps(row) + "\n")
    return path


def _text(ids: Any) -> str:
    return " ".join(f"w{i}" for i in ids)


def make_tokenizer(vocab: int) -> Any:
    """A tokenizer whose tokens are the words w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<unk>": UNKNOWN, "</s>": END, "<pad>": PAD} | {f"w{i}": i for i in range(FIRST_WORD, vocab)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )


def make_model(shape: str, seed: int = 0) -> Any:
    """A Llama with random weights: float32 on a CPU; in bfloat16 on the GPU where there is one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["d"],
        intermediate_size=-(-sizes["d"] * 8 // 3 // 32) * 32,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["heads"],
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    gpu = torch.cuda.is_available()
    torch.manual_seed(seed)
    # Made where it stays: a float32 copy of 8 billion weights in the CPU's memory takes minutes.
    with torch.device("cuda" if gpu else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if gpu else torch.float32)
    return model.eval()


def statistics_of(model: Any, distribution: str = "sparse") -> dict[str, Any]:
    """What a build caches by itself of the reference ``model``; see the build's option ``distribution``."""
    from tdpo.core.caching.statistics import statistics_identity
    from tdpo.core.config.build import BuildConfig

    dtype = str(model.dtype).removeprefix("torch.")
    return statistics_identity(BuildConfig("", [""], distribution=distribution), model, dtype)


def make_scorer(model: Any, statistics: dict[str, Any], **options: Any) -> Any:
    """What scores ``model``'s pairs in a build with ``options``."""
    from tdpo.core.caching import reference
    from tdpo.core.config.build import BuildConfig

    return reference.make_scorer(BuildConfig("", [""], **options), model, statistics)


def write_cache(scorer: Any, statistics: dict[str, Any], pairs: Sequence[Pair], folder: Path) -> None:
    """From pairs to the finished shards of a cache, as a build does it."""
    from tdpo.cache.writer import CacheWriter
    from tdpo.core.caching.reference import store_head
    from tdpo.core.caching.shards import score_shards

    dtype = str(scorer.model.dtype).removeprefix("torch.")
    identity = {"reference": {"dtype": dtype}, "statistics": statistics}
    with CacheWriter(
        folder, identity, {}, source_rows=len(pairs), shard_rows=SHARD_ROWS, overwrite=True
    ) as writer:
        store_head(scorer, writer)
        windows = [(i, [pairs[row] for row in writer.source_rows(i)], {}) for i in range(writer.shards)]
        score_shards(scorer, windows, writer.write_shard, lambda tokens: None)
        writer.finish()


def whole_build(case: Mapping[str, Any]) -> Callable[[], None]:
    """``tdpo.build_cache`` from a text file and a saved model, which this writes; imports are done by then.

    Args:
        case: ``shape``, ``lengths``, ``pairs`` (how many), ``folder`` and, for the budget, ``batch_tokens``.
    """
    folder = Path(case["folder"])
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    import datasets

    import tdpo

    datasets.disable_progress_bars()
    vocab = SHAPES[case["shape"]]["vocab"]
    make_model(case["shape"]).save_pretrained(folder / "model")
    make_tokenizer(vocab).save_pretrained(folder / "model")
    count = case["pairs"]
    first = next(each_pair(case["lengths"], count, vocab))
    data = write_text(each_pair(case["lengths"], count, vocab), folder / "pairs.jsonl")
    build = tdpo.build_cache

    def work() -> None:
        reader = build(
            folder / "model",
            data,
            folder / "cache",
            batch_tokens=case["batch_tokens"],
            max_length=4096,
            quiet=True,
        )
        assert (len(reader), reader[0].pair.pair_id) == (count, first.pair_id)
        # The next time is to be like the first: the data are read from their file again.
        for made in ("cache", "datasets"):
            shutil.rmtree(folder / made, ignore_errors=True)

    return work
