"""README.md of an exported data set: what it is, and how to train from it without a reference."""

import json
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from ...cache.manifest import Manifest

_LOAD = {
    "parquet": ("load_dataset", 'load_dataset("parquet", data_files="train-*.parquet", split="train")'),
    "jsonl": ("load_dataset", 'load_dataset("json", data_files="train-*.jsonl", split="train")'),
    "arrow": ("load_from_disk", 'load_from_disk(".")'),
}

_WHAT = {
    "pair_id": "content hash of the three token lists",
    "row": "index in the source data",
    "prompt_ids": "token ids of the prompt",
    "chosen_ids": "token ids of the chosen completion",
    "rejected_ids": "token ids of the rejected completion",
    "ref_chosen_logps": "log-probability of the chosen completion under the reference, in nats: a sum",
    "ref_rejected_logps": "the same of the rejected completion",
}

# TRL 1.16 makes both columns by itself and has no option to take them from the data, hence the two methods.
_RECIPE = """\
from datasets import {loader}
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


class FromCache(DPOTrainer):
    # Tokens and reference log-probabilities are in the data: neither is made again.
    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _precompute_ref_logps(self, dataset, *args, **kwargs):
        return dataset


reference = {reference}
trainer = FromCache(
    AutoModelForCausalLM.from_pretrained(reference),
    args=DPOConfig("out", precompute_ref_log_probs=True, max_length=None),
    train_dataset={load},
    processing_class=AutoTokenizer.from_pretrained(reference),
)
trainer.train()
"""


def export_card(manifest: "Manifest", schema: pa.Schema, format: str, longest: int) -> str:
    """The card of an export of the cache that ``manifest`` describes; ``longest`` is in tokens."""
    loader, load = _LOAD[format]
    reference = json.dumps(str(manifest.provenance.get("reference", "the reference")), ensure_ascii=False)
    header = ["---"]
    if format != "arrow":
        header += ["configs:", "- config_name: default", "  data_files:", "  - split: train"]
        header += [f"    path: train-*.{format}"]
    columns = [f"| `{field.name}` | `{_type_name(field.type)}` | {_WHAT[field.name]} |" for field in schema]
    return "\n".join(
        [
            *header,
            "tags:",
            "- preference",
            "- trl",
            "- tdpo",
            "---",
            "",
            "# Preference pairs with a reference's log-probabilities",
            "",
            f"{manifest.rows:,} pairs with {manifest.completion_tokens:,} completion tokens, exported from a",
            "tdpo cache. What was scored, and by which model, is in `tdpo-export.json`.",
            "",
            "| column | type | what it is |",
            "| --- | --- | --- |",
            *columns,
            "",
            "## Training with TRL, without the reference",
            "",
            "In this folder, with TRL 1.16:",
            "",
            "```python",
            _RECIPE.format(loader=loader, load=load, reference=reference) + "```",
            "",
            "* The sums are of whole completions: leave `max_length=None`, and do not set `ld_alpha`. The",
            f"  pairs were cut to size when the cache was built; the longest has {longest:,} tokens.",
            "* The sums are the reference's. Start the policy from the reference, or know that you do not.",
            "",
        ]
    )


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{kind.value_type}>"
    return "float32" if kind == pa.float32() else str(kind)
