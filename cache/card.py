"""README.md of a cache: a data-set card, so that a hub shows the folder as a data set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .schema import FORMAT_VERSION, CachedStatistics, shard_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .manifest import Manifest

CARD_NAME = "README.md"


def dataset_card(manifest: Manifest) -> str:
    """Return the card of a finished cache: a YAML header for a hub, then what the columns are."""
    schema = shard_schema(CachedStatistics.of(manifest.identity))
    columns = [
        f"| `{field.name}` | `{_type_name(field.type)}` | {field.metadata[b'doc'].decode()} |"
        for field in schema
    ]
    skipped = [f"| {reason} | {rows.count:,} |" for reason, rows in manifest.skipped.items()]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: pairs-*.parquet",
        "tags:",
        "- preference",
        "- tdpo",
        "---",
        "",
        "# Reference statistics of a preference data set",
        "",
        f"A tdpo cache (format version {FORMAT_VERSION}): {manifest.rows:,} preference pairs, tokenised,",
        "with what a reference model said at each completion token. A policy is trained from it without the",
        "reference.",
        "",
        "```python",
        "import tdpo",
        "",
        'cache = tdpo.open_cache("this folder")',
        "cache[0].chosen.ref_logp",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| pairs | {manifest.rows:,} of {manifest.source_rows:,} rows |",
        *([f"| part | {manifest.part} |"] if manifest.part else []),
        f"| prompt tokens | {manifest.prompt_tokens:,} |",
        f"| completion tokens | {manifest.completion_tokens:,} |",
        f"| bytes | {manifest.bytes:,} |",
        "",
        *(["Rows left out:", "", "| reason | rows |", "| --- | --- |", *skipped, ""] if skipped else []),
        "## Columns",
        "",
        "T is the number of tokens of the completion, n = head + tail the number of cached entries a token.",
        "",
        "| column | type | what it is |",
        "| --- | --- | --- |",
        *columns,
        "",
        *_made(manifest.provenance),
        "## What was scored",
        "",
        "```json",
        json.dumps(manifest.identity, indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _made(provenance: Mapping[str, Any]) -> list[str]:
    """Return how the cache is made again, as far as that is recorded."""
    versions = provenance.get("versions") or {}
    rows = {
        "reference": provenance.get("reference"),
        "data": provenance.get("dataset"),
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items() if value]
    command = provenance.get("command")
    return [
        *(["## Make it again", ""] if table or command else []),
        *(["```bash", command, "```", ""] if command else []),
        *(["| | |", "| --- | --- |", *table, ""] if table else []),
    ]


def _type_name(kind: Any) -> str:
    return f"list<{kind.value_type}>" if hasattr(kind, "value_type") else str(kind)
