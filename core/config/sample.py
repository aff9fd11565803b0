"""The options of drawing pairs from a model."""

from dataclasses import MISSING, dataclass

from ..options import option


@dataclass(frozen=True)
class SampleConfig:
    """Options of ``tdpo data sample`` and ``tdpo.sample_pairs``."""

    model: str = option(MISSING, "model to draw completions from: a folder or a hub name", metavar="MODEL")
    prompts: str = option(
        MISSING,
        "data with a column `prompt`, text or lists of messages: a file, a folder, a glob or a hub name",
        metavar="D",
    )
    split: str = option("train", "split of the data")
    reward: str | None = option(
        None,
        "what scores completions: function(prompts, completions) -> scores, of lists of texts",
        metavar="MODULE:FUNCTION",
    )
    reward_model: str | None = option(
        None,
        "sequence-classification model with one output that scores completions, conversations through its "
        "own chat template",
        metavar="MODEL",
    )
    out: str = option("pairs.jsonl", "file of the pairs", metavar="FILE")
    samples: int = option(8, "completions of a prompt", gt=1)
    temperature: float = option(1.0, "of the draws", gt=0)
    max_tokens: int = option(256, "tokens of a completion at most", gt=0)
    tau: float = option(1.0, "scale of the rewards", gt=0)
    threshold: float = option(0.7, "least sigmoid((better - worse) / tau) of a pair's rewards", ge=0.5, lt=1)
    pairs_per_prompt: int = option(4, "pairs of a prompt at most, those furthest apart", gt=0)
    limit: int | None = option(None, "use only the first prompts", gt=0)
    batch_size: int = option(16, "completions drawn at a time", gt=0)
    seed: int = option(0, "of the draws", ge=0)
    dtype: str = option("auto", "precision of the model", choices=("auto", "float32", "bfloat16", "float16"))
    overwrite: bool = option(False, "replace the files of an earlier run")
