"""Completions drawn from a model, which stays as it was."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .errors import ModelError
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
    advance: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion of each prompt, in their order; the model and all random states stay as they were.

    The n-th completion of a prompt takes its random numbers from a generator keyed by (seed, the prompt's
    tokens, n). So it depends neither on the batch nor on the other prompts, a smaller ``max_tokens`` gives
    its beginning, and two models that are near each other mostly choose the same tokens. (CPUs and GPUs make
    other numbers of the same key; and what a batch changes in the last digits of a logit can decide between
    two tokens that are as good as equal.)

    Args:
        model: a transformers causal language model or a peft.PeftModel around one.
        tokenizer: knows the padding and, beside the model's own settings, the end of a completion.
        prompts: token ids; a prompt that comes again gets another completion.
        max_tokens: of a completion; less where the model takes no more positions.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws. The same one at each evaluation: what differs is the policy's doing.
        batch_size: prompts at a time, those of similar length together.
        advance: told how many more prompts are done.

    Raises:
        ModelError: the model gives logits that are not finite.
    """
    keys = _keys(seed, prompts)
    found: dict[int, Completion] = {}
    with _evaluating(model):
        for batch, room in _batches(prompts, batch_size, max_tokens, _positions(model)):
            rows = [prompts[at] for at in batch]
            draws = _Draws(model, [keys[at] for at in batch], temperature)
            found |= zip(batch, _complete(model, tokenizer, rows, room, draws), strict=True)
            if advance is not None:
                advance(len(batch))
    return [found[at] for at in range(len(prompts))]


def _keys(seed: int, prompts: Sequence[Sequence[int]]) -> list[int]:
    """What to seed each prompt's generator with, 63 bits."""
    times: Counter[bytes] = Counter()
    keys = []
    for prompt in prompts:
        content = np.asarray(prompt, dtype="<i8").tobytes()
        digest = hashlib.blake2b(f"{seed}/{times[content]}/".encode() + content, digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little") >> 1)
        times[content] += 1
    return keys


def _positions(model: Any) -> int | None:
    """Most positions the model takes; None where it has no such limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _batches(
    prompts: Sequence[Sequence[int]], batch_size: int, max_tokens: int, positions: int | None
) -> Iterator[tuple[list[int], int]]:
    """Places of prompts of similar length, and how many tokens their completions may have.

    Those that run out of positions are together only with others of just their length: a row may go on as
    long as it would alone.
    """

    def room(at: int) -> int:
        return max_tokens if positions is None else max(0, min(max_tokens, positions - len(prompts[at])))

    batch: list[int] = []
    for at in sorted(range(len(prompts)), key=lambda at: len(prompts[at])):
        if batch and (len(batch) == batch_size or room(at) != room(batch[0])):
            yield batch, room(batch[0])
            batch = []
        batch.append(at)
    if batch:
        yield batch, room(batch[0])


class _Draws(LogitsProcessor):
    """Turns logits into scores of which the greatest is a draw: the Gumbel-max trick, a generator a row.

    ``argmax(z / temperature + g)`` has the distribution ``softmax(z / temperature)`` where the noise g has a
    standard Gumbel distribution, as minus the logarithm of an exponential number has.
    """

    def __init__(self, model: Any, keys: Sequence[int], temperature: float):
        self.name, self.keys, self.temperature = type(model).__name__, keys, temperature
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] of the next token, of logits [B, V]."""
        if not bool(scores.amax(-1).isfinite().all()):
            raise ModelError(
                f"{self.name} gives logits that are not finite, so that nothing can be drawn from "
                "it; check its weights, or run it in float32"
            )
        if self.temperature == 0:
            return scores
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(key) for key in self.keys]
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self.temperature - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()


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
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], room: int, draws: _Draws
) -> list[Completion]:
    width = max(map(len, prompts))
    if room < 1:
        return [Completion([], finished=False) for _ in prompts]
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    device = input_device(model)
    rows = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
        # The greatest score is the draw.
        logits_processor=LogitsProcessorList([draws]),
        # Whatever the model's own settings say of sampling: these samples are to show the policy.
        generation_config=GenerationConfig(
            do_sample=False,
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
