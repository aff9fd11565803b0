"""What scores completions: somebody's function, or a sequence-classification model."""

import importlib
import math
import os
import sys
from collections.abc import Sequence
from textwrap import shorten
from typing import Any, Protocol

from ..errors import ConfigError, ModelError, first_line
from ..scoring.placement import place

Messages = list[dict[str, Any]]


class Reward(Protocol):
    """Prompts and completions to scores, one each."""

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        messages: Sequence[Messages | None] | None = None,
    ) -> list[float]:
        """Score completions.

        Args:
            prompts: as texts; of a conversation, as the policy's chat template renders it.
            completions: as texts, one a prompt.
            messages: of prompts that are conversations, their messages; None for those that are texts. A
                model renders them, with the completion, by its own chat template; a function is not given
                them.

        Raises:
            ConfigError: what the function returns is not one finite number a completion.
            ModelError: a text is longer than the model takes, or no template renders a conversation.
        """


def open_reward(function: str | None, model: str | None) -> Reward:
    """The reward that the options name.

    Raises:
        ConfigError: neither or both are given, or the function cannot be had.
        ModelError: the model cannot be opened, or gives more than one number.
    """
    if (function is None) == (model is None):
        raise ConfigError("give --reward MODULE:FUNCTION or --reward-model MODEL, one of the two")
    return _of_function(function) if function is not None else _of_model(str(model))


def _of_function(spec: str) -> Reward:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"--reward {spec}: expected MODULE:FUNCTION, such as rewards:helpfulness")
    # As a script in the current folder would find it.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"--reward {spec}: {type(error).__name__}: {first_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"--reward {spec}: is {type(found).__name__}, not a function")

    def reward(
        prompts: Sequence[str],
        completions: Sequence[str],
        messages: Sequence[Messages | None] | None = None,
    ) -> list[float]:
        try:
            returned = found(list(prompts), list(completions))
        except Exception as error:
            raise ConfigError(
                f"--reward {spec}: raised {type(error).__name__}: {first_line(error)}; it is given lists of "
                "prompts and completions and returns a number for each completion"
            ) from error
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError):
            # Not what it returned: that may be somebody's text.
            raise ConfigError(
                f"--reward {spec}: what it returned ({type(returned).__name__}) holds no numbers; it is "
                "given lists of prompts and completions and returns a number for each completion"
            ) from None
        return _checked(scores, completions, f"--reward {spec}")

    return reward


def _of_model(name: str) -> Reward:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    option = f"--reward-model {name}"
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise ModelError(f"{option}: does not load ({type(error).__name__}: {first_line(error)})") from error
    if model.config.num_labels != 1:
        raise ModelError(f"{option}: gives {model.config.num_labels} numbers a text; a reward is one")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    device = place(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def token_ids(prompt: str, completion: str, messages: Messages | None) -> list[int]:
        if messages is not None and tokenizer.chat_template:
            text = _conversation(tokenizer, [*messages, _answer(completion)], option)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt + completion)["input_ids"]
        if len(ids) > limit:
            raise ModelError(
                f"{option}: takes {limit} tokens, and a prompt with its completion has {len(ids)} "
                f"({shorten(prompt, 60)!r}); use a model that takes more, or leave such prompts out"
            )
        return list(ids)

    @torch.inference_mode()
    def reward(
        prompts: Sequence[str],
        completions: Sequence[str],
        messages: Sequence[Messages | None] | None = None,
    ) -> list[float]:
        turns = messages or [None] * len(prompts)
        rows = [token_ids(*each) for each in zip(prompts, completions, turns, strict=True)]
        # Without a padding token only rows of their own can be scored.
        step = len(rows) if tokenizer.pad_token_id is not None else 1
        scores: list[float] = []
        for start in range(0, len(rows), max(1, step)):
            some = [torch.tensor(ids) for ids in rows[start : start + step]]
            input_ids = pad_sequence(some, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
            mask = pad_sequence([torch.ones_like(ids) for ids in some], batch_first=True)
            logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
            scores += logits[:, 0].float().tolist()
        return _checked(scores, completions, option)

    return reward


def _answer(completion: str) -> dict[str, Any]:
    return {"role": "assistant", "content": completion}


def _conversation(tokenizer: Any, messages: Messages, option: str) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:
        raise ModelError(
            f"{option}: its chat template does not render a prompt with its answer "
            f"({type(error).__name__}: {first_line(error)}); use prompts whose turns it knows"
        ) from error


def _checked(scores: list[float], completions: Sequence[str], option: str) -> list[float]:
    if len(scores) != len(completions):
        raise ConfigError(f"{option}: returned {len(scores)} scores for {len(completions)} completions")
    if not all(map(math.isfinite, scores)):
        raise ConfigError(f"{option}: returned a score that is not finite")
    return scores
