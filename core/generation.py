"""Completions drawn from a model, which stays as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from .randomness import keep_random_states
from .scoring.placement import input_device


@dataclass(frozen=True)
class Completion:
    """What a model made of a prompt."""

    ids: list[int]
    """Its tokens, the one that ends it included."""
    finished: bool
    """Whether it ended, rather than reached the limit."""


@torch.no_grad()
@keep_random_states()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> list[Completion]:
    """One completion of each prompt, in their order; the model and all random states stay as they were.

    Args:
        model: a transformers causal language model or a peft.PeftModel around one.
        tokenizer: knows the padding and, beside the model's own settings, the end of a completion.
        prompts: token ids.
        max_tokens: of a completion; less where the model takes no more positions.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws. The same one at each evaluation: what differs is the policy's doing.
        batch_size: prompts at a time.
    """
    torch.manual_seed(seed)
    with _evaluating(model):
        return [
            completion
            for start in range(0, len(prompts), batch_size)
            for completion in _complete(
                model, tokenizer, prompts[start : start + batch_size], max_tokens, temperature
            )
        ]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _complete(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float
) -> list[Completion]:
    width = max(map(len, prompts))
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = max_tokens if positions is None else min(max_tokens, positions - width)
    if room < 1:
        return [Completion([], finished=False) for _ in prompts]
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    device = input_device(model)
    rows = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
        # Whatever the model's own settings say of sampling: these samples are to show the policy.
        generation_config=GenerationConfig(
            do_sample=temperature > 0,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
            repetition_penalty=1.0,
            num_beams=1,
            max_new_tokens=room,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad,
            use_cache=True,
        ),
    )[:, width:].tolist()
    return [_up_to_end(row, ends) for row in rows]


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion."""
    of_model = model.generation_config.eos_token_id
    ends = set(of_model if isinstance(of_model, list) else [of_model]) | {tokenizer.eos_token_id}
    return ends - {None}


def _up_to_end(row: list[int], ends: set[int]) -> Completion:
    for at, token in enumerate(row):
        if token in ends:
            return Completion(row[: at + 1], finished=True)
    return Completion(row, finished=False)
