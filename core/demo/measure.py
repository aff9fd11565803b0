"""What a policy does: its expected reward, and how far it went from the reference, on fresh samples."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..scoring.sequences import SequenceScorer
from .corpus import sentiment
from .sampling import Sample, sample


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its standard error."""

    mean: float
    error: float

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval."""
        return 1.96 * self.error

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The mean of independent ``values``; the error is 0 for a single one."""
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), spread / math.sqrt(len(values)))


@dataclass(frozen=True)
class Measurement:
    """One policy on the held-out prompts, one sample a prompt."""

    reward: Estimate
    """Sentiment of prompt and completion."""
    forward_kl: Estimate
    """KL(reference || policy) summed over a completion's tokens, in nats: the TDPO paper's sequential KL."""
    reverse_kl: Estimate
    """KL(policy || reference) summed likewise, in nats; its mean is the KL between whole completions."""
    tokens: float
    """Mean length of a completion."""

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON."""
        return asdict(self)


def measure(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    what: str = "sampling",
    quiet: bool = False,
) -> Measurement:
    """Sample from ``policy`` on ``prompts`` and compare with ``reference``, exactly.

    The same ``seed`` gives every policy the same random numbers, so that policies differ by less noise.
    """
    samples = sample(policy, tokenizer, prompts, seed=seed, what=what, quiet=quiet)
    rewards = [sentiment(prompt + s.text) for prompt, s in zip(prompts, samples, strict=True)]
    forward, reverse = sequential_kl(policy, reference, samples)
    return Measurement(
        reward=Estimate.of(rewards),
        forward_kl=Estimate.of(forward),
        reverse_kl=Estimate.of(reverse),
        tokens=statistics.fmean(len(s.completion_ids) for s in samples),
    )


def sequential_kl(policy: Any, reference: Any, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Exact sequential KL of each sample, in nats: sums over its completion tokens.

    Returns:
        KL(reference || policy) and KL(policy || reference), one number a sample.
    """
    sequences = [(sample.prompt_ids, sample.completion_ids) for sample in samples]
    scored = SequenceScorer(policy, reference).score(sequences)
    return [_total(one.forward_kl) for one in scored], [_total(one.reverse_kl) for one in scored]


def _total(values: np.ndarray | None) -> float:
    assert values is not None  # there is a reference
    return float(values.sum(dtype=np.float64))
