"""The options of evaluating finished runs and models."""

from dataclasses import MISSING, dataclass
from typing import Any

from ..options import option


@dataclass(frozen=True)
class EvalConfig:
    """Options of ``tdpo eval`` and ``tdpo.evaluate``."""

    run: list[str] = option(MISSING, "folders of runs, or of models or adapters, or hub names", metavar="RUN")
    cache: list[str] = option(
        [],
        "cache to evaluate on, in place of the evaluation caches of the run; may be repeated",
        metavar="[NAME=]DIR",
    )
    model: str | None = option(
        None, "policy to evaluate in place of the run's own, such as a checkpoint of it", metavar="MODEL"
    )
    plugin: list[str] = option(
        [],
        "objective that gives loss and rewards; the run's own when not given, dpo for a model that is no run",
        metavar="NAME[=WEIGHT]",
    )
    weighting: list[str] = option([], "weighting of that objective; may be repeated", metavar="NAME")
    set: dict[str, Any] = option({}, "option of that objective or weighting", metavar="OPTION=VALUE")
    scores: str | None = option(
        None, "added scores to read, by name, with commas; as the run did when not given", metavar="NAMES"
    )
    reference: str | None = option(
        None, "added scores whose reference or sample takes the place of the cache's own", metavar="NAME"
    )
    kl_estimator: str | None = option(
        None,
        "estimator of the forward KL from the cached sample; the run's own when not given",
        choices=("fitted", "nonnegative", "log_ratio"),
    )
    metric: list[str] = option(
        [], "figure to report, or a pattern such as 'rewards/*'; all when not given", metavar="NAME"
    )
    slice: list[str] = option(
        [],
        "column by whose values, or by as many equally filled bins of its numbers, all is also reported",
        metavar="COLUMN[=BINS]",
    )
    columns: list[str] = option(
        [], "data with further columns of the pairs, found by pair_id or by row", metavar="FILE"
    )
    require: list[str] = option(
        [],
        "what must hold, such as 'rewards/accuracies>=0.6'; NAME.low and NAME.high are the interval's ends",
        metavar="CONDITION",
    )
    confidence: float = option(0.95, "of the intervals", gt=0, lt=1)
    bootstrap: int = option(1000, "resamples behind the intervals; 0 leaves intervals out", ge=0)
    calibration_bins: int = option(10, "bins of the reliability table", gt=0)
    limit: int | None = option(None, "use only so many pairs, drawn by the seed", gt=0)
    seed: int = option(0, "of the resamples and of --limit", ge=0)
    batch_tokens: int = option(8192, "tokens of a forward pass at most, padding included", gt=0)
    dtype: str = option(
        "auto",
        "precision of the policy's parameters; as saved when not given",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    generate: int | None = option(
        None, "also sample: from the policy, and from the reference, on so many prompts of the cache", gt=0
    )
    samples_per_prompt: int = option(1, "samples of each prompt", gt=0)
    max_tokens: int = option(256, "tokens of a sample at most", gt=0)
    temperature: float = option(1.0, "of samples; 0 takes the likeliest token each time", ge=0)
    batch_size: int = option(32, "samples drawn, and judged, at a time", gt=0)
    reward: str | None = option(
        None,
        "what judges samples: function(prompts, completions) -> scores, of lists of texts",
        metavar="MODULE:FUNCTION",
    )
    reward_model: str | None = option(
        None, "sequence-classification model with one output that judges samples", metavar="MODEL"
    )
    against: str | None = option(
        None,
        "what samples are to win over, by the reward: another run's or model's samples, or `chosen`, the "
        "completions of the cache",
        metavar="MODEL",
    )
    reference_model: str | None = option(
        None,
        "the reference, to sample from and to compare samples with; as the cache names it when not given",
        metavar="MODEL",
    )
    out: str | None = option(
        None, "folder of eval.json and pairs.parquet; RUN/eval of a single run when not given", metavar="DIR"
    )
