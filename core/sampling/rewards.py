"""What scores completions: somebody's function, or a sequence-classification model."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigError, ModelError, first_line
from ..scoring.placement import place

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]
"""Texts of prompts and of completions to scores, one each."""


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

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        try:
            scores = [float(score) for score in found(list(prompts), list(completions))]
        except Exception as error:
            raise ConfigError(
                f"--reward {spec}: raised {type(error).__name__}: {first_line(error)}; it is given lists of "
                "prompts and completions and returns a number for each completion"
            ) from error
        return _checked(scores, completions, f"--reward {spec}")

    return reward


def _of_model(name: str) -> Reward:
    import torch
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
    place(model)

    @torch.inference_mode()
    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True).to(model.device)
        inputs.pop("token_type_ids", None)
        return _checked(model(**inputs).logits[:, 0].float().tolist(), completions, option)

    return reward


def _checked(scores: list[float], completions: Sequence[str], option: str) -> list[float]:
    if len(scores) != len(completions):
        raise ConfigError(f"{option}: returned {len(scores)} scores for {len(completions)} completions")
    if not all(map(math.isfinite, scores)):
        raise ConfigError(f"{option}: returned a score that is not finite")
    return scores
