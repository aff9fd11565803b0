"""The model card and the command line that reproduces a run."""

import hashlib
import json
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ...cache.manifest import Manifest
from ..config.fit import FitConfig
from ..objective import Objective

_NOT_REPRODUCED = {"resume", "overwrite", "training", "set"}


def command_line(config: FitConfig) -> str:
    """The ``tdpo fit`` command that gives this configuration."""
    words = ["tdpo", "fit"]
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in _NOT_REPRODUCED or value == default:
            continue
        flag = "--" + field.name.replace("_", "-")
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    settings = {**config.set, **{f"training.{name}": value for name, value in config.training.items()}}
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def write_card(
    folder: Path, config: FitConfig, objective: Objective, manifest: Manifest, metrics: dict[str, Any]
) -> None:
    """Write ``README.md``: what the model is, how it was made, from which cache, and what to cite."""
    reference = manifest.identity["reference"]
    start = config.model or manifest.provenance.get("reference", "the cached reference")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [tdpo, preference-optimisation, {config.plugin}]",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"A policy trained with the objective `{config.plugin}` from a cached reference model, starting at "
        f"`{start}`. The reference was not in memory during training.",
        "",
        "## How it was made",
        "",
        "```bash",
        command_line(config),
        "```",
        "",
        f"Objective: `{objective}`",
        "",
        "## The cache it was trained from",
        "",
        f"* identity: `{_identity_hash(manifest)}` (SHA-256 of the manifest's `identity`)",
        f"* reference: `{manifest.provenance.get('reference')}`"
        f" ({', '.join(f'{k} {v}' for k, v in reference.items() if v is not None)})",
        f"* pairs: {manifest.rows:,}; completion tokens: {manifest.completion_tokens:,}",
        f"* made with: {', '.join(f'{k} {v}' for k, v in manifest.provenance.get('versions', {}).items())}",
        "",
        *_evaluation(metrics),
        *_citation(objective),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _identity_hash(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest.identity, sort_keys=True).encode()).hexdigest()


def _evaluation(metrics: dict[str, Any]) -> list[str]:
    shown = {name: value for name, value in metrics.items() if "/" in name or name.endswith("loss")}
    if not shown:
        return []
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(shown.items())]
    return ["## Last figures", "", "| figure | value |", "| --- | --- |", *rows, ""]


def _citation(objective: Objective) -> list[str]:
    if not objective.paper:
        return []
    return ["## Cite", "", f"The objective: {objective.paper}.", ""]
