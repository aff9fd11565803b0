"""The options of building a cache, and of adding to one."""

from dataclasses import MISSING, dataclass
from typing import Any

from ..options import option


@dataclass(frozen=True)
class BuildConfig:
    """Options of ``tdpo cache build`` and ``tdpo.build_cache``."""

    ref: str = option(MISSING, "reference model: a folder or a hub name", metavar="MODEL")
    dataset: list[str] = option(
        MISSING,
        "preference data: a .jsonl/.json/.csv/.parquet file, a folder, a glob or a hub name; may be repeated "
        "for several files",
        metavar="D",
    )
    out: str = option("tdpo-cache", "folder of the cache, or a URL such as s3://bucket/cache", metavar="DIR")
    split: str = option("train", "split of the data set")
    subset: str | None = option(None, "configuration of a hub data set")
    data_revision: str | None = option(None, "revision of a hub data set")
    column_map: dict[str, str] = option(
        {}, "columns under other names: prompt=question", metavar="NAME=COLUMN"
    )
    limit: int | None = option(None, "use only the first rows", gt=0)
    shuffle_seed: int | None = option(
        None, "read the rows in a random order; with --limit: a random part of them", ge=0
    )
    streaming: bool = option(False, "read data larger than the disk row by row, with no copy of it")
    chat_template: str | None = option(
        None, "file with a Jinja chat template, in place of the tokenizer's", metavar="FILE"
    )
    template_date: str | None = option(
        None, "day that a chat template takes for today, where it writes the date", metavar="YYYY-MM-DD"
    )
    max_length: int | None = option(
        None, "most tokens of prompt and completion; the reference's own limit when not given", gt=1
    )
    truncation: str = option(
        "drop", "what to do with a longer row", choices=("drop", "error", "keep_start", "keep_end")
    )
    truncate: str = option(
        "prompt", "which part keep_start and keep_end cut", choices=("prompt", "completion")
    )
    max_skipped: float = option(0.05, "largest share of rows that may be unusable", ge=0, le=1)
    distribution: str = option(
        "sparse",
        "what is cached of the reference's distributions: nothing, a sample, its hidden states and output "
        "head (all of it, rebuilt in training), every log-prob (small vocabularies)",
        choices=("none", "sparse", "exact", "full"),
    )
    head: int | None = option(
        None, "k: likeliest reference tokens cached per position; 8 when not given, 0 if exact", ge=0
    )
    tail: int | None = option(
        None, "m: tokens drawn from the rest of the distribution; 8 when not given, 0 if exact", ge=0
    )
    head_mass: float = option(
        0.99, "a position's head ends early once it holds this much probability; 1: always k", gt=0, le=1
    )
    tail_mass: float = option(
        0.3, "where less is left outside the head, fewer are drawn, in proportion; 0: always m", ge=0, le=1
    )
    seed: int = option(0, "seed of the draws", ge=0)
    revision: str | None = option(None, "revision of a reference on the hub")
    ref_dtype: str = option(
        "auto", "precision the reference runs in", choices=("auto", "float32", "bfloat16", "float16")
    )
    ref_quantization: str | None = option(
        None, "load the reference in fewer bits, with bitsandbytes", choices=("4bit", "8bit")
    )
    ref_adapter: str | None = option(
        None, "adapter on top of the reference, with peft: a folder or a hub name", metavar="ADAPTER"
    )
    device_map: str | None = option(
        None, "auto: spread the reference over all GPUs, the CPU and the disk", choices=("auto",)
    )
    hidden_dtype: str = option(
        "auto",
        "precision of the hidden states of --distribution exact; auto: what loses nothing of the reference's",
        choices=("auto", "bfloat16", "float32"),
    )
    attention: str | None = option(None, "attention backend: sdpa, eager, flash_attention_2, ...")
    batch_tokens: int | None = option(
        None, "tokens scored at a time; chosen for the device and halved when memory runs out", gt=0
    )
    prompt_sharing: str = option(
        "auto",
        "score the prompt of a pair once for both completions: where the model can, always, never",
        choices=("auto", "on", "off"),
    )
    shard_rows: int | None = option(
        None,
        "source rows of one shard, the unit that a killed build resumes at; 1024 when not given, fewer where "
        "the reference's distributions are cached whole",
        gt=0,
    )
    part: str | None = option(
        None,
        "build only this part of the shards, such as 2/5; tdpo cache merge joins the parts",
        metavar="I/N",
    )
    num_processes: int = option(1, "processes that share the work on this machine, one a GPU", gt=0)
    overwrite: bool = option(False, "replace a cache that was built from another request")


@dataclass(frozen=True)
class AddConfig:
    """Options of ``tdpo cache add`` and ``tdpo.add_statistics``."""

    name: str = option(MISSING, "name of the scores, by which fit finds them", metavar="NAME")
    cache: str = option("tdpo-cache", "folder of the cache, or a URL", metavar="DIR")
    positive: str | None = option(
        None, "contrast: model trained towards what is preferred; with --negative", metavar="MODEL"
    )
    negative: str | None = option(
        None, "contrast: model trained towards what is rejected; with --positive", metavar="MODEL"
    )
    positive_prompt: str | None = option(
        None, "contrast: system prompt that asks for what is preferred; with --negative-prompt"
    )
    negative_prompt: str | None = option(
        None, "contrast: system prompt that asks for what is rejected; with --positive-prompt"
    )
    ref: str | None = option(
        None, "another reference; with prompts or a statistic, the model to use", metavar="MODEL"
    )
    head: int = option(0, "k: likeliest tokens per position of a larger or a second sample", ge=0)
    tail: int = option(0, "m: tokens drawn from the rest", ge=0)
    entropy: bool = option(False, "the entropies of another reference as well")
    statistic: str | None = option(None, "a statistic that a plugin provides", metavar="NAME")
    set: dict[str, Any] = option({}, "option of the statistic", metavar="NAME=VALUE")
    seed: int = option(0, "seed of the draws", ge=0)
    chat_template: str | None = option(
        None,
        "the Jinja template that the cache was built with, where it was not the tokenizer's own",
        metavar="FILE",
    )
    revision: str | None = option(None, "revision of a --ref on the hub")
    ref_dtype: str = option(
        "auto",
        "precision that other models than the cache's reference run in",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    ref_quantization: str | None = option(
        None, "load another model in 8 or 4 bits, with bitsandbytes", choices=("8bit", "4bit")
    )
    ref_adapter: str | None = option(None, "adapter on top of --ref, with peft", metavar="ADAPTER")
    device_map: str | None = option(
        None, "auto: spread a model over what GPUs and memory there are", choices=("auto",)
    )
    attention: str | None = option(None, "attention backend of other models than the cache's reference")
    batch_tokens: int | None = option(
        None, "tokens scored at a time; chosen for the device and halved when memory runs out", gt=0
    )
    overwrite: bool = option(False, "replace scores of that name that were made from another request")
