"""Bytes a completion token against the error of the KL that they buy.

    python benchmarks/cache_size.py [--vocab 128000] [--json out.json] [--png out.png]

Synthetic distributions with the shape that language models give (most tokens nearly certain, some wide open,
Zipf's law over the vocabulary), a policy some hundredths of a nat away. Each way of keeping the reference is
written as Parquet for its bytes, and asked for the KL of every completion, which is known exactly.
"""

import argparse
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tdpo.cache.encode import write_pairs
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.schema import CachedStatistics
from tdpo.core.divergence import forward_kl

COUNTS = (0, 4, 8, 16, 32, 64)
WIDTH = 64


def main() -> None:
    """Measure every way of keeping the reference and print a table."""
    options = arguments()
    torch.manual_seed(options.seed)
    world = World.make(options.vocab, options.kl)
    sample = Sample(world, options)
    rows = list(measured(sample, options))
    print(
        f"V = {options.vocab:,}, {options.pairs} pairs of 2 x {options.tokens} tokens; entropy "
        f"{sample.entropy:.2f} nats a token, {sample.certain:.0%} of tokens below 0.5; "
        f"exact KL {sample.kl.mean() / options.tokens:.3f} nats a token"
    )
    print(f"{'kept of the reference':<44} {'entries':>7} {'B/token':>8} {'bias':>8} {'rms':>7}")
    for row in rows:
        print(
            f"{row['name']:<44} {row['entries']:>7.1f} {row['bytes_per_token']:>8.1f} "
            f"{row['bias']:>+8.2%} {row['rms']:>7.2%}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    if options.png:
        draw(rows, options.png)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocab", type=int, default=128_000)
    parser.add_argument("--pairs", type=int, default=32, help="pairs that are written")
    parser.add_argument("--scored", type=int, default=6, help="completions whose KL is estimated")
    parser.add_argument("--tokens", type=int, default=192, help="tokens of each completion")
    parser.add_argument("--repeats", type=int, default=8, help="fresh samples of each completion")
    parser.add_argument("--kl", type=float, default=0.1, help="about how far the policy is, nats a token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--png")
    return parser.parse_args()


@dataclass
class World:
    """A reference and a policy as log-linear models of random features."""

    weight: Tensor
    """[V, d]."""
    prior: Tensor
    """[V], about Zipf's law, in logarithms."""
    shift: Tensor
    """[V, d]: how the policy's weights differ."""

    @classmethod
    def make(cls, vocab: int, kl: float) -> "World":
        """A world whose policy lies about ``kl`` nats a token from the reference."""
        weight = torch.randn(vocab, WIDTH) / math.sqrt(WIDTH)
        # Tokenizers number their tokens about in order of frequency.
        rank = torch.arange(1, vocab + 1, dtype=torch.float32) + 2.7
        prior = torch.randn(vocab) - torch.log(rank)
        # KL is about half the variance of the log-ratio under the reference.
        shift = torch.randn(vocab, WIDTH) / math.sqrt(WIDTH) * math.sqrt(2 * kl) * 1.4
        return cls(weight, prior, shift)

    def distributions(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities [T, V] of reference and policy at ``tokens`` places of one completion."""
        direction = torch.randn(tokens, WIDTH)
        # How sure the model is varies from token to token by far more than it does from text to text.
        sure = torch.exp(torch.randn(tokens, 1) * 0.6 + 2.2)
        z = (direction * sure) @ self.weight.T + self.prior
        return z.log_softmax(-1), (z + direction @ self.shift.T).log_softmax(-1)


@dataclass(frozen=True)
class Plan:
    """How many entries a token gets.

    The head: the fewest likeliest tokens that reach ``mass``, at most ``head``. The draws: ``tail``, or fewer
    where less than ``full`` is left outside the head, in proportion, at least one.
    """

    head: int
    tail: int
    mass: float = 1.0
    full: float = 0.0

    def __str__(self) -> str:
        head = f"head {self.head}" if self.mass == 1 else f"head <= {self.head} to {self.mass:.0%}"
        tail = f"tail {self.tail}" if not self.full else f"tail <= {self.tail} by {self.full:.0%}"
        return f"{head} + {tail}"

    def sizes(self, top_p: Tensor) -> Tensor:
        """Head sizes [T] for the likeliest tokens' log-probabilities [T, most]."""
        if self.mass == 1 or not self.head:
            return torch.full((len(top_p),), self.head)
        return ((top_p[:, : self.head].exp().cumsum(-1) < self.mass).sum(-1) + 1).clamp(max=self.head)

    def draws(self, left: Tensor) -> Tensor:
        """Numbers of draws [T] for the mass left outside the heads [T]."""
        if not self.full or not self.tail:
            return torch.full(left.shape, self.tail)
        return (self.tail * left / self.full).ceil().clamp(1, self.tail).long()


FIXED = [Plan(k, m) for k in COUNTS for m in COUNTS]
ADAPTIVE = [
    Plan(k, m, mass, full)
    for k, m in ((8, 8), (16, 8), (8, 16))
    for mass in (0.8, 0.9, 0.95, 0.99)
    for full in (0.0, 0.1, 0.3)
]


class Sample:
    """Completions of a world, and what each plan keeps of the reference there."""

    def __init__(self, world: World, options: argparse.Namespace):
        self.options, self.vocab = options, options.vocab
        self.kept: dict[Plan, list[Kept]] = {plan: [] for plan in FIXED + ADAPTIVE}
        self.labels, self.label_logp, self.entropies = [], [], []
        kl = []
        for index in range(2 * options.pairs):
            log_p, log_q = world.distributions(options.tokens)
            p = log_p.exp()
            labels = torch.multinomial(p, 1)
            self.labels.append(labels[:, 0].numpy().astype(np.int32))
            self.label_logp.append(log_p.gather(-1, labels)[:, 0].numpy())
            self.entropies.append(torch.special.entr(p).sum(-1).numpy())
            scored = index < options.scored
            if scored:
                kl.append((p * (log_p - log_q)).sum())
            self._keep(log_p, p, log_q if scored else None)
        flat = np.concatenate(self.entropies)
        self.entropy, self.certain = float(flat.mean()), float((flat < 0.5).mean())
        self.kl = torch.stack(kl)

    def _keep(self, log_p: Tensor, p: Tensor, log_q: Tensor | None) -> None:
        top = log_p.topk(max(COUNTS), -1)
        repeats = self.options.repeats if log_q is not None else 1
        tails: dict[tuple[int, float], Tensor] = {}
        for plan, kept in self.kept.items():
            sizes = plan.sizes(top.values)
            inside = torch.arange(max(COUNTS)) < sizes[:, None]
            key = plan.head, plan.mass
            if key not in tails:
                rest = p.scatter(-1, top.indices, torch.where(inside, 0, top.values.exp()))
                cdf = rest.cumsum(-1)
                target = torch.rand(len(p), max(COUNTS) * repeats) * cdf[:, -1:] * (1 - 1e-6)
                tails[key] = torch.searchsorted(cdf, target, right=True).clamp(max=p.shape[-1] - 1)
            drawn = tails[key].reshape(len(p), repeats, -1)[:, :, : plan.tail]
            left = 1 - torch.where(inside, top.values.exp(), 0).sum(-1)
            count = plan.draws(left)
            head = top.indices[:, None, : plan.head].expand(-1, repeats, -1)
            ids = torch.cat([head, drawn], -1)
            there = torch.cat([inside[:, : plan.head], torch.arange(plan.tail) < count[:, None]], -1)
            flat = ids.flatten(1)
            logp, q = (
                x.gather(-1, flat).reshape(ids.shape) for x in (log_p, log_p if log_q is None else log_q)
            )
            kept.append(Kept(ids, logp, q, there))

    def pairs(self, plan: Plan, rounding: int | None = None) -> list[ScoredPair]:
        """What the cache's writer is given."""
        sides = []
        for kept, logp, entropy in zip(self.kept[plan], self.label_logp, self.entropies, strict=True):
            values = rounded(kept.logp[:, 0], rounding).numpy().astype(np.float16)
            values = np.where(kept.there, values, np.float16(-np.inf))
            ids = kept.ids[:, 0].numpy().astype(np.uint32)
            some = plan.head + plan.tail > 0
            sides.append(
                SideStatistics(
                    logp, entropy.astype(np.float16), ids if some else None, values if some else None
                )
            )
        prompt = np.arange(self.options.tokens // 2, dtype=np.int32)
        return [
            ScoredPair(
                Pair.make(row, prompt, self.labels[2 * row], self.labels[2 * row + 1]),
                sides[2 * row],
                sides[2 * row + 1],
            )
            for row in range(len(sides) // 2)
        ]

    def error(self, plan: Plan, rounding: int | None = None) -> dict[str, float]:
        """Bias and root-mean-square error of a completion's KL, over the mean exact KL."""
        scored = self.kept[plan][: self.options.scored]
        return self._error([kept.kl(plan.head, self.vocab, rounding) for kept in scored])

    def truncation_error(self, k: int) -> dict[str, float]:
        """The same for the KL over the head alone, which is what a top-k cache gives."""
        scored = self.kept[Plan(k, 0)][: self.options.scored]
        return self._error([(x.logp.exp() * (x.logp - x.logq)).sum((0, 2))[:1] for x in scored])

    def _error(self, estimates: list[Tensor]) -> dict[str, float]:
        error = torch.stack([e - kl for e, kl in zip(estimates, self.kl, strict=True)])
        scale = float(self.kl.mean())
        return {"bias": float(error.mean()) / scale, "rms": float(error.square().mean().sqrt()) / scale}


@dataclass
class Kept:
    """A completion's entries under one plan, in R fresh samples: ids, log-probs of both models [T, R, n]."""

    ids: Tensor
    logp: Tensor
    logq: Tensor
    there: Tensor
    """[T, n] bool: False where the token has fewer entries."""

    def kl(self, head: int, vocab: int, rounding: int | None) -> Tensor:
        """The completion's estimated KL [R]."""
        logp = torch.where(self.there[:, None], rounded(self.logp, rounding), -torch.inf).transpose(0, 1)
        mask = torch.ones(logp.shape[:2], dtype=torch.bool)
        return forward_kl(logp, self.logq.transpose(0, 1), head, mask, vocab_size=vocab).sum(-1)


def rounded(logp: Tensor, bits: int | None) -> Tensor:
    """Log-probabilities as float16 keeps them, or with only ``bits`` bits of mantissa."""
    if bits is None:
        return logp.half().float()
    mantissa, exponent = torch.frexp(logp)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def measured(sample: Sample, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each way of keeping the reference."""
    tokens = 2 * options.pairs * options.tokens

    def row(family: str, name: str, entries: float, size: int, error: dict[str, float]) -> dict[str, Any]:
        return {"family": family, "name": name, "entries": entries, "bytes_per_token": size / tokens, **error}

    for plan in FIXED:
        entries = plan.head + plan.tail
        error = sample.error(plan) if entries else {"bias": math.nan, "rms": math.nan}
        family = "fixed" if plan.tail else "bucket"
        yield row(family, str(plan), entries, len(shard(sample, plan)), error)
    for bits in (8, 6, 4):
        plan = Plan(8, 8)
        size = len(shard(sample, plan, bits))
        yield row("coarser", f"{plan}, {bits} bits of mantissa", 16, size, sample.error(plan, bits))
    for k in (16, 32, 64):
        size = default_parquet(sample.pairs(Plan(k, 0)))
        yield row("plain", f"plain top-{k}, default Parquet", k, size, sample.truncation_error(k))
    for plan in ADAPTIVE:
        there = torch.stack([kept.there for kept in sample.kept[plan]])
        family = "adaptive head and draws" if plan.full else "adaptive head"
        entries = float(there.float().sum(-1).mean())
        yield row(family, str(plan), entries, len(shard(sample, plan)), sample.error(plan))


def shard(sample: Sample, plan: Plan, rounding: int | None = None) -> bytes:
    """The pairs as the cache writes them."""
    statistics = CachedStatistics(
        entropy=True, head=plan.head, tail=plan.tail, seed=0, vocab_size=sample.vocab
    )
    file = io.BytesIO()
    write_pairs(file, sample.pairs(plan, rounding), statistics)
    return file.getvalue()


def default_parquet(pairs: list[ScoredPair]) -> int:
    """Bytes of a table that keeps entries as a list of structs in float32, with pyarrow's defaults."""
    columns: dict[str, Any] = {"prompt_ids": [one.pair.prompt_ids for one in pairs]}
    for side in ("chosen", "rejected"):
        values = [one.side(side) for one in pairs]
        columns[f"{side}_ids"] = [getattr(one.pair, f"{side}_ids") for one in pairs]
        columns[f"{side}_logp"] = [value.ref_logp for value in values]
        columns[f"{side}_top_ids"] = [value.dist_ids.ravel() for value in values]
        columns[f"{side}_top_logp"] = [value.dist_logp.astype(np.float32).ravel() for value in values]
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return len(file.getvalue())


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Error over bytes, one point for each way."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    families = {
        "fixed": "fixed head and draws",
        "bucket": "head only, the rest in a bucket",
        "coarser": "head 8 + tail 8, coarser log-probs",
        "plain": "plain top-k, default Parquet",
        "adaptive head": "adaptive head",
        "adaptive head and draws": "adaptive head and draws",
    }
    for (family, label), marker in zip(families.items(), "os^xDv", strict=True):
        points = [r for r in rows if r["family"] == family and math.isfinite(r["rms"])]
        x, y = ([r[key] for r in points] for key in ("bytes_per_token", "rms"))
        axes.plot(x, y, marker, label=label, ms=5)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="bytes a completion token",
        ylabel="rms error of a completion's summed KL, over its mean",
    )
    axes.axvline(64, lw=0.8, ls=":", color="grey")
    axes.grid(alpha=0.3, which="both", lw=0.4)
    axes.set_xticks([32, 64, 128, 256, 512], ["32", "64", "128", "256", "512"])
    axes.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3], ["0.3 %", "1 %", "3 %", "10 %", "30 %"])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
