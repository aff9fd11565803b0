"""``samples.parquet``: every sample of an evaluation, with its text and its figures."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ...cache.pairs import Pair
from .samples import Samples

SAMPLES_FILE = "samples.parquet"

SCHEMA = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("cache", pa.string()),
        pa.field("drawn_from", pa.string()),
        pa.field("pair_id", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("completion_ids", pa.list_(pa.int32())),
        pa.field("tokens", pa.int32()),
        pa.field("finished", pa.bool_()),
        pa.field("reward", pa.float64()),
        pa.field("logp", pa.float64()),
        pa.field("entropy", pa.float64()),
        pa.field("kl", pa.float64()),
        pa.field("reverse_kl", pa.float64()),
        pa.field("log_ratio", pa.float64()),
    ]
)
"""``drawn_from`` is ``policy``, ``reference``, ``against`` or ``chosen``; ``run`` is the name of that model.

``logp``, ``kl`` (KL(reference || policy)), ``reverse_kl`` and ``log_ratio`` are sums over a sample's tokens,
``entropy`` is their mean; nats, of the model that drew the sample; null where that was not measured.
"""


def sample_rows(
    pairs: Sequence[Pair], samples: Samples, *, run: str, cache: str, drawn_from: str
) -> pa.Table:
    """The rows of a model's samples on the prompts of ``pairs``, prompt by prompt."""
    times = samples.per_prompt
    count = len(samples.texts)
    columns = {
        "run": [run] * count,
        "cache": [cache] * count,
        "drawn_from": [drawn_from] * count,
        "pair_id": [pair.pair_id for pair in pairs for _ in range(times)],
        "sample": [at for _ in pairs for at in range(times)],
        "prompt": [text for text in samples.prompt_texts for _ in range(times)],
        "completion": samples.texts,
        "completion_ids": [one.ids for one in samples.completions],
        "tokens": samples.tokens,
        "finished": samples.finished,
    }
    if samples.rewards is not None:
        columns["reward"] = samples.rewards.ravel()
    if samples.scores:
        columns |= {"logp": samples.sums("logp"), "entropy": samples.sums("entropy") / samples.tokens}
    if samples.has_reference:
        columns |= {
            "kl": samples.sums("forward_kl"),
            "reverse_kl": samples.sums("reverse_kl"),
            "log_ratio": samples.sums("logp") - samples.sums("ref_logp"),
        }
    return _table(columns, count)


def given_rows(
    pairs: Sequence[Pair], prompts: Sequence[str], texts: Sequence[str], rewards: np.ndarray, *, cache: str
) -> pa.Table:
    """The rows of the cache's chosen completions, with which samples are compared."""
    count = len(pairs)
    columns = {
        "run": ["chosen"] * count,
        "cache": [cache] * count,
        "drawn_from": ["chosen"] * count,
        "pair_id": [pair.pair_id for pair in pairs],
        "sample": [0] * count,
        "prompt": prompts,
        "completion": texts,
        "completion_ids": [pair.chosen_ids.tolist() for pair in pairs],
        "tokens": [len(pair.chosen_ids) for pair in pairs],
        "reward": rewards,
    }
    return _table(columns, count)


def _table(columns: dict[str, object], count: int) -> pa.Table:
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
