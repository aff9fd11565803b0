"""Completions sampled from a small model: batched, at temperature 1, the same for a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..progress import Progress

MAX_NEW_TOKENS = 96  # about twice the longest review's rest: hardly a sample reaches it
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Sample:
    """A prompt and one completion that a model gave it."""

    prompt_ids: list[int]
    """Token ids, BOS included."""
    completion_ids: list[int]
    """Token ids, EOS included where the model came to an end."""
    text: str
    """The completion's text."""
    finished: bool
    """Whether the completion ends with EOS and not at the length limit."""


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    what: str = "sampling",
    quiet: bool = False,
) -> list[Sample]:
    """Sample one completion for each prompt, in the order of ``prompts``.

    The global random state is left as it was. The draws depend on ``seed``, the model and the prompts.
    """
    ids = tokenizer(list(prompts))["input_ids"]
    samples: dict[int, Sample] = {}
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    with torch.random.fork_rng(devices=[]), Progress(what, len(ids), "prompts", quiet=quiet) as progress:
        torch.manual_seed(seed)
        for start in range(0, len(order), _BATCH_SIZE):
            chosen = order[start : start + _BATCH_SIZE]
            completions = _generate(model, tokenizer, [ids[index] for index in chosen])
            for index, completion in zip(chosen, completions, strict=True):
                samples[index] = Sample(
                    prompt_ids=ids[index],
                    completion_ids=completion,
                    text=tokenizer.decode(completion, skip_special_tokens=True),
                    finished=completion[-1] == tokenizer.eos_token_id,
                )
            progress.advance(len(chosen))
    return [samples[index] for index in range(len(ids))]


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Completion ids up to and with the first EOS, of prompts that are padded on the left."""
    width = max(map(len, prompts))
    padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    rows = model.generate(
        input_ids=padded,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
    )[:, width:].tolist()
    end = tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
