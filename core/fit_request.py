"""What a fit is asked for, opened and checked against each other, with no weights loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cache.reader import open_cache
from .checks import check_model, check_needs, check_positions, find_policy, open_evaluations
from .composing import compose, prepare
from .config.evaluation import check_evaluation
from .config.fit import FitConfig
from .config.tracking import trackers
from .joining import join_scores
from .models import ModelSource
from .swapping import swap_labels
from .tokenizers import load_tokenizer
from .training.lora import check_lora_options, check_start

if TYPE_CHECKING:
    from .objective import Objective


@dataclass(frozen=True)
class FitRequest:
    """A fit's options with what they name."""

    config: FitConfig
    objective: "Objective"
    reader: Any
    """The cache, with the scores that are read beside it and its labels as they are trained on."""
    evaluations: dict[str, Any]
    """The evaluation caches by their names, read in the same way."""
    policy: ModelSource
    """Where training starts; its weights are not loaded yet."""
    tokenizer: Any


def open_request(config: FitConfig) -> FitRequest:
    """Open what ``config`` names, and check that it goes together.

    Raises:
        TdpoError: something cannot be used; says what, where and what to do.
    """
    check_lora_options(config)
    check_evaluation(config)
    trackers(config)
    reader: Any = open_cache(config.cache)
    objective = compose(config.plugin, config.weighting, config.set)
    reader, evaluations = join_scores(config, objective, reader, open_evaluations(config, reader))
    check_needs(config, objective, reader)
    objective = prepare(objective, reader)
    # Objectives are torch code, which `tdpo --help` does without.
    from .trying import try_out

    try_out(objective, config.plugin, reader)
    if config.swap:
        reader = swap_labels(reader)
        evaluations = {name: swap_labels(one) for name, one in evaluations.items()}
    policy = find_policy(config, reader)
    check_start(config, policy)
    tokenizer = load_tokenizer(policy, option="--model")
    check_model(policy, tokenizer, reader, option="--model")
    check_positions(config, policy, reader, evaluations)
    return FitRequest(config, objective, reader, evaluations, policy, tokenizer)
