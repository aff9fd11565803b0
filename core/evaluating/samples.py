"""What a model says to prompts: drawn, scored under policy and reference, and judged by a reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, first_line
from ..generation import Completion, complete
from ..progress import Progress
from ..sampling.rewards import Reward
from ..scoring.sequences import SequenceScorer, SequenceScores


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn."""

    per_prompt: int = 1
    """S, samples of each prompt."""
    max_tokens: int = 256
    """Of a sample; less where the model takes no more positions."""
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """See :func:`~tdpo.core.generation.complete`."""
    batch_size: int = 32
    """Samples drawn, and completions judged, at a time."""


@dataclass(frozen=True)
class Samples:
    """``S`` samples of each of ``P`` prompts; lists hold them prompt by prompt."""

    prompts: Sequence[Sequence[int]]
    """P lists of token ids."""
    completions: Sequence[Completion]
    """P * S."""
    prompt_texts: list[str]
    """P, see :func:`prompt_text`."""
    texts: list[str]
    """P * S, without special tokens."""
    scores: list[SequenceScores] | None = None
    """P * S: under the model that drew them, and the reference; None where they were not scored."""
    rewards: np.ndarray | None = None
    """[P, S] float64; None without a reward."""

    @property
    def per_prompt(self) -> int:
        """S."""
        return len(self.completions) // max(1, len(self.prompts))

    @property
    def tokens(self) -> np.ndarray:
        """Their lengths [P * S] int64, the token that ends one included."""
        return np.array([len(one.ids) for one in self.completions], dtype=np.int64)

    @property
    def finished(self) -> np.ndarray:
        """Whether they ended by themselves [P * S] bool."""
        return np.array([one.finished for one in self.completions], dtype=bool)

    @property
    def said(self) -> list[list[int]]:
        """Their tokens without the one that ends them, P * S."""
        return [one.ids[:-1] if one.finished else one.ids for one in self.completions]

    def sums(self, statistic: str) -> np.ndarray:
        """A statistic of :class:`SequenceScores` summed over each sample's tokens: nats [P * S] float64.

        Raises:
            ValueError: the samples were not scored, or there was no reference.
        """
        values = [getattr(one, statistic) for one in self.scores or ()]
        if not values or values[0] is None:
            raise ValueError(f"these samples have no {statistic}")
        return np.array([value.sum(dtype=np.float64) for value in values])

    @property
    def has_reference(self) -> bool:
        """Whether they were scored under a reference too."""
        return bool(self.scores) and self.scores[0].ref_logp is not None  # type: ignore[index]


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    drawing: Drawing,
    *,
    scorer: SequenceScorer | None = None,
    reward: Reward | None = None,
    name: str = "the model",
    quiet: bool = False,
) -> Samples:
    """Draw samples and measure them.

    Expected reward and sequential KL of a policy on its own samples, exactly::

        scorer = SequenceScorer(policy, reference)
        samples = sample(policy, tokenizer, prompts, Drawing(max_tokens=96), scorer=scorer, reward=reward)
        samples.rewards.mean(), samples.sums("forward_kl").mean(), samples.sums("reverse_kl").mean()

    Args:
        model: a causal language model on its device; it and all random states stay as they were.
        tokenizer: of the model.
        prompts: token ids.
        drawing: how.
        scorer: of ``model``, with a reference or without; samples are not scored without.
        reward: judges prompts and completions, as texts.
        name: of the model, for messages.
        quiet: show no progress.

    Raises:
        ModelError: the model cannot generate, or a prompt leaves no room for a token.
        ConfigError: the reward cannot be used.
    """
    repeated = [prompt for prompt in prompts for _ in range(drawing.per_prompt)]
    with Progress(f"sampling {name}", len(repeated), "samples", quiet=quiet) as progress:
        completions = _drawn(model, tokenizer, repeated, drawing, name, progress)
    prompt_texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    texts = [tokenizer.decode(one.ids, skip_special_tokens=True) for one in completions]
    scores = None
    if scorer is not None:
        sequences = [(prompt, one.ids) for prompt, one in zip(repeated, completions, strict=True)]
        with Progress(f"scoring samples of {name}", len(sequences), "samples", quiet=quiet) as progress:
            scores = scorer.score(sequences, progress.advance)
    found = Samples(prompts, completions, prompt_texts, texts, scores)
    return found if reward is None else judged(found, reward, drawing.batch_size)


def judged(samples: Samples, reward: Reward, batch_size: int) -> Samples:
    """The same samples with their rewards. Raises what the reward does."""
    prompts = [text for text in samples.prompt_texts for _ in repeat(None, samples.per_prompt)]
    scores = judge(reward, prompts, samples.texts, batch_size)
    rewards = scores.reshape(len(samples.prompts), samples.per_prompt)
    return Samples(
        samples.prompts, samples.completions, samples.prompt_texts, samples.texts, samples.scores, rewards
    )


def judge(reward: Reward, prompts: Sequence[str], completions: Sequence[str], batch_size: int) -> np.ndarray:
    """Rewards [N] float64 of N completions, as texts. Raises what the reward does."""
    scores: list[float] = []
    for start in range(0, len(completions), batch_size):
        some = slice(start, start + batch_size)
        scores += reward(prompts[some], completions[some])
    return np.array(scores, dtype=np.float64)


def prompt_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """A prompt as a reward is given it: as it was written, or as the chat template rendered it.

    Turns keep their marks; only what the tokenizer puts before every text is left out.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    return str(tokenizer.decode(ids[1:] if list(ids[:1]) == [bos] else ids))


def _drawn(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    drawing: Drawing,
    name: str,
    progress: Progress,
) -> list[Completion]:
    try:
        found = complete(
            model,
            tokenizer,
            prompts,
            max_tokens=drawing.max_tokens,
            temperature=drawing.temperature,
            seed=drawing.seed,
            batch_size=drawing.batch_size,
            advance=progress.advance,
        )
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"{name}: {drawing.batch_size} samples at a time do not fit into memory; lower --batch-size or "
            "--max-tokens"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{name}: cannot generate ({type(error).__name__}: {first_line(error)}); samples take a model "
            "that transformers' generate() works with"
        ) from error
    for prompt, one in zip(prompts, found, strict=True):
        if not one.ids:
            raise ModelError(
                f"{name}: takes no more positions than a prompt of {len(prompt):,} tokens has; leave such "
                "prompts out"
            )
    return found
