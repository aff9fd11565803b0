"""Preference pairs: two completions of the reference, labelled by the known reward with noise."""

import math
import random
from collections.abc import Sequence
from typing import Any

from .corpus import sentiment
from .sampling import Sample, sample

_SHORTEST, _LONGEST = 4, 8  # words of a prompt


def prompts_from(reviews: Sequence[str], seed: int) -> list[str]:
    """The first 4 to 8 words of each review; always at least one word short of the whole."""
    rng = random.Random(seed)
    prompts = []
    for review in reviews:
        words = review.split()
        prompts.append(" ".join(words[: min(rng.randint(_SHORTEST, _LONGEST), len(words) - 1)]))
    return prompts


def sample_pairs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    temperature: float,
    seed: int,
    what: str,
    quiet: bool = False,
) -> list[dict[str, str]]:
    """Two completions for each prompt, and which of them a noisy judge prefers.

    The first is chosen with probability sigmoid((r1 - r2) / temperature), r the sentiment of prompt and
    completion together (Bradley-Terry). Left out are prompts with equal, empty or unfinished completions,
    and completions whose text would be tokenised otherwise than they were sampled.

    Returns:
        Rows ``{"prompt", "chosen", "rejected"}``; a side starts with the space after the prompt.
    """
    first, second = (
        sample(model, tokenizer, prompts, seed=2 * seed + side, what=f"{what} ({side + 1} of 2)", quiet=quiet)
        for side in (0, 1)
    )
    rng = random.Random(seed)
    rows = []
    for prompt, one, other in zip(prompts, first, second, strict=True):
        # Drawn for every prompt, so that one dropped pair does not change the labels of the others.
        draw = rng.random()
        if one.text == other.text or not (
            _usable(one, prompt, tokenizer) and _usable(other, prompt, tokenizer)
        ):
            continue
        gap = sentiment(prompt + one.text) - sentiment(prompt + other.text)
        chosen, rejected = (one, other) if draw < preference(gap, temperature) else (other, one)
        rows.append({"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text})
    return rows


def preference(gap: float, temperature: float) -> float:
    """Bradley-Terry: the probability that the first is preferred when its reward is higher by ``gap``."""
    # The logistic function, in a form that no gap overflows.
    return 0.5 * (1 + math.tanh(0.5 * gap / temperature))


def agreement(rows: Sequence[dict[str, str]]) -> float:
    """Share of pairs, of those with unequal rewards, whose chosen side has the higher one."""
    gaps = [
        sentiment(row["prompt"] + row["chosen"]) - sentiment(row["prompt"] + row["rejected"]) for row in rows
    ]
    unequal = [gap for gap in gaps if gap]
    return sum(gap > 0 for gap in unequal) / len(unequal) if unequal else math.nan


def _usable(sample: Sample, prompt: str, tokenizer: Any) -> bool:
    if not sample.finished or not sample.text.strip():
        return False
    return tokenizer(prompt + sample.text)["input_ids"] == sample.prompt_ids + sample.completion_ids[:-1]
