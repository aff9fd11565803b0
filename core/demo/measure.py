"""What a policy does: its expected reward, and how far it went from the reference, on fresh samples."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .corpus import sentiment
from .sampling import Sample, sample

_BATCH_SIZE = 64


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


@torch.no_grad()
def sequential_kl(policy: Any, reference: Any, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Exact sequential KL of each sample, in nats: sums over its completion tokens.

    Returns:
        KL(reference || policy) and KL(policy || reference), one number a sample.
    """
    forward: list[float] = []
    reverse: list[float] = []
    for start in range(0, len(samples), _BATCH_SIZE):
        ids, attention, scored = _right_padded(samples[start : start + _BATCH_SIZE])
        log_pi, log_ref = (
            model(input_ids=ids, attention_mask=attention).logits[:, :-1].float().log_softmax(-1)
            for model in (policy, reference)
        )
        gap = log_ref - log_pi  # [B, L - 1, V]
        forward += ((log_ref.exp() * gap).sum(-1) * scored).sum(-1).tolist()
        reverse += ((log_pi.exp() * -gap).sum(-1) * scored).sum(-1).tolist()
    return forward, reverse


def _right_padded(samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and attention mask [B, L], and [B, L - 1] whether position t predicts a completion token."""
    rows = [s.prompt_ids + s.completion_ids for s in samples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    position = torch.arange(width - 1)
    starts = torch.tensor([[len(s.prompt_ids)] for s in samples])
    ends = torch.tensor([[len(row)] for row in rows])
    return ids, attention, (position + 1 >= starts) & (position + 1 < ends)
