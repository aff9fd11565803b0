"""What a build will take, told before it is begun: tokens, bytes, memory and time."""

import math
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ....cache.pairs import Pair
from ....cache.storage.files import is_url
from ...config.build import BuildConfig
from ...data.spool import PairSpool, check_skipped
from ...errors import ConfigError
from ...sizes import size_text
from ..request import Request, open_request, resolve_options, tokenise
from ..statistics import statistics_identity


@dataclass(frozen=True)
class Plan:
    """Estimates of a build. Sizes in bytes; ``str()`` is for people, :meth:`to_dict` for programs."""

    out: str
    part: str | None
    """``--part``, of which nothing here knows: all figures are of the whole cache."""
    rows: int
    """Source rows."""
    rows_read: int
    """Rows that were tokenised for the plan; fewer than ``rows`` only where a sample was asked for."""
    pairs: int
    prompt_tokens: int
    completion_tokens: int
    """Of both sides."""
    longest: int
    """Most tokens of a prompt and its longer completion among the rows that were read."""
    skipped: dict[str, int]
    """Rows that would be left out, by reason."""
    refused: bool
    """Whether so many would be that the build ends there."""
    shards: int
    shard_rows: int
    bytes: int
    """Of the shards, if the reference is as sure of its predictions as language models are of usual text."""
    bytes_at_most: int
    """Where it is so unsure that every position keeps all its entries."""
    head_bytes: int
    """Of the reference's output head, which the exact distribution keeps beside the shards."""
    free: int | None
    """Bytes left where the cache goes; None for remote storage."""
    scored_tokens: int
    """Tokens that go through the model."""
    layout: str
    """Whether a pair's prompt is scored once (``shared``) or for each completion (``separate``)."""
    batch_tokens: int
    device: str
    dtype: str
    memory: dict[str, int]
    """By purpose, on the device; the shard in flight is in main memory."""
    flops: float
    flops_per_second: float | None
    """Of a matrix product here; None where a rate of tokens was given."""
    tokens_per_second: float
    seconds: float

    @property
    def sampled(self) -> bool:
        """Whether counts are extrapolated from a part of the rows."""
        return self.rows_read < self.rows

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return {**asdict(self), "sampled": self.sampled, "estimate": True}

    def __str__(self) -> str:
        about = "about " if self.sampled else ""
        lines = [
            f"{self.out}: {about}{self.pairs:,} pairs in {_shards(self.shards)} "
            "(an estimate; nothing is loaded yet)",
            f"  tokens     {about}{self.prompt_tokens:,} of prompts, {self.completion_tokens:,} of "
            f"completions (both sides); longest pair {self.longest:,}",
            *self._skipped_lines(about),
            f"  size       about {size_text(self.bytes + self.head_bytes)}, at most "
            f"{size_text(self.bytes_at_most + self.head_bytes)}"
            + ("" if self.free is None else f"; {size_text(self.free)} free"),
            f"  memory     about {size_text(sum(self.memory.values()))}: "
            + ", ".join(f"{size_text(size)} {name}" for name, size in self.memory.items()),
            f"  work       {self.scored_tokens:,} tokens through the model ({_layout(self.layout)}), "
            f"{_flops(self.flops)}",
            f"  time       about {_duration(self.seconds)} on {self.device} in {self.dtype}, at "
            f"{self.tokens_per_second:,.0f} tokens/s{self._rate()}",
        ]
        if self.sampled:
            lines.append(f"  from       the first {self.rows_read:,} of {self.rows:,} rows")
        if self.part is not None:
            lines.append(f"  note       of the whole cache; part {self.part} takes its share of it")
        if self.free is not None and self.bytes + self.head_bytes > self.free:
            lines.append("  note       the cache does not fit on that disk")
        return "\n".join(lines)

    def _skipped_lines(self, about: str) -> list[str]:
        if not self.skipped:
            return ["  skipped    none"]
        lines = [f"  skipped    {about}{count:,} {reason}" for reason, count in self.skipped.items()]
        if self.refused:
            lines.append("  note       more than --max-skipped allows: the build would end there")
        return lines

    def _rate(self) -> str:
        if self.flops_per_second is None:
            return " as given"
        return f" if it runs like a matrix product does here ({_flops(self.flops_per_second)}/s)"


def plan_cache(
    ref: str | os.PathLike[str] | None = None,
    dataset: Any = None,
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    sample: int | None = None,
    tokens_per_second: float | None = None,
    quiet: bool = False,
    **options: Any,
) -> Plan:
    """Estimate a build; what ``tdpo cache plan`` does. Takes what :func:`tdpo.build_cache` takes.

    Args:
        ref, dataset, out, config, options: the build's.
        sample: tokenise only the first rows and extrapolate.
        tokens_per_second: speed of scoring; told from a matrix product on this machine when not given.
        quiet: show no progress.

    Raises:
        TdpoError: what was given cannot be used.
    """
    resolved, in_memory = resolve_options({"ref": ref, "dataset": dataset, "out": out, **options}, config)
    return run_plan(resolved, in_memory, sample=sample, tokens_per_second=tokens_per_second, quiet=quiet)


def run_plan(
    config: BuildConfig,
    in_memory: Any = None,
    *,
    sample: int | None = None,
    tokens_per_second: float | None = None,
    quiet: bool = False,
) -> Plan:
    """Estimate the build that ``config`` describes. Raises as :func:`plan_cache`."""
    for name, value in (("--sample", sample), ("--tokens-per-second", tokens_per_second)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} {value}: give a number above 0")
    request = open_request(config, in_memory)
    rows = request.source.length
    if sample is not None and rows is None:
        raise ConfigError(
            "--sample: how many rows a stream has is not known; leave --sample or --streaming out"
        )
    read = request
    if sample is not None and rows is not None and sample < rows:
        read = open_request(replace(config, limit=sample), in_memory)
    with tokenise(read, quiet=quiet) as spool:
        check_skipped(spool, 1.0)
        return _plan(request, spool, rows or spool.source_rows, tokens_per_second)


def _plan(request: Request, spool: PairSpool, rows: int, tokens_per_second: float | None) -> Plan:
    import torch

    from ...scoring.sharing import choose_layout
    from ..identity import resolved_dtype
    from .cost import ModelCost, matmul_rate
    from .standin import measure, unbounded

    config, model = request.config, request.model
    scale = rows / spool.source_rows
    prompt_tokens, completion_tokens = (round(count * scale) for count in spool.tokens)
    pairs = round(spool.kept * scale)
    shards = math.ceil(rows / request.shard_rows)
    dtype = resolved_dtype(config.ref_dtype, model.config)
    statistics = statistics_identity(config, model, dtype)
    some = _some_pairs(spool)
    weighed = measure(config, statistics, some)
    most = measure(config, unbounded(statistics), some)

    layout = choose_layout(model.config, config.prompt_sharing, config.attention)
    shared = layout == "shared"
    scored = (
        prompt_tokens + completion_tokens - 2 * pairs if shared else 2 * prompt_tokens + completion_tokens
    )
    cost = ModelCost.of(model, dtype, getattr(config, "ref_quantization", None))
    batch_tokens = weighed.batch_tokens if config.batch_tokens is None else config.batch_tokens
    device = torch.device(weighed.device)
    flops = cost.flops(scored, scored / max(1, pairs * (1 if shared else 2)), completion_tokens)
    rate = None if tokens_per_second else matmul_rate(device, dtype, cost.hidden_size)
    seconds = scored / tokens_per_second if tokens_per_second else flops / (rate or 1.0)
    skipped = {reason: round(found["count"] * scale) for reason, found in spool.skipped.items()}
    in_flight = 2 * weighed.in_memory * completion_tokens * min(1.0, request.shard_rows / rows)
    memory = cost.memory(batch_tokens, spool.longest, device, shared=shared)
    head_bytes = cost.vocab_size * cost.hidden_size * cost.item if "hidden" in statistics else 0
    return Plan(
        out=str(config.out),
        part=config.part,
        rows=rows,
        rows_read=spool.source_rows,
        pairs=pairs,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        longest=spool.longest,
        skipped=skipped,
        refused=spool.source_rows - spool.kept > config.max_skipped * spool.source_rows,
        shards=shards,
        shard_rows=request.shard_rows,
        bytes=weighed.of(shards, pairs, prompt_tokens, completion_tokens),
        bytes_at_most=most.of(shards, pairs, prompt_tokens, completion_tokens),
        head_bytes=head_bytes,
        free=None if is_url(config.out) else _free(Path(config.out)),
        scored_tokens=scored,
        layout=layout,
        batch_tokens=batch_tokens,
        device=str(device),
        dtype=dtype,
        memory={**memory, "shards in flight": round(in_flight)},
        flops=flops,
        flops_per_second=rate,
        tokens_per_second=tokens_per_second or scored / max(seconds, 1e-9),
        seconds=seconds,
    )


def _some_pairs(spool: PairSpool) -> list[Pair]:
    """The pairs of the first shard that has any."""
    for index in range(len(spool)):
        pairs, _ = spool.window(index)
        if pairs:
            return pairs
    raise AssertionError("check_skipped lets no data without pairs pass")


def _free(path: Path) -> int | None:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _shards(count: int) -> str:
    return "one shard" if count == 1 else f"{count:,} shards"


def _layout(layout: str) -> str:
    return "each prompt once" if layout == "shared" else "each prompt twice"


def _flops(count: float) -> str:
    power = max(0, min(6, int(math.log10(max(count, 1)) // 3)))
    return f"{count / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}FLOP"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {name}"
    return f"{seconds:.2g} seconds"
