"""The model card and the command line that reproduces a run."""

import hashlib
import json
import shlex
from collections.abc import Mapping
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
        if isinstance(value, bool):
            words.append(flag)
        else:
            words += [word for each in _values(value) for word in (flag, str(each))]
    settings = {**config.set, **{f"training.{name}": value for name, value in config.training.items()}}
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def write_card(
    folder: Path,
    config: FitConfig,
    objective: Objective,
    manifest: Manifest,
    metrics: dict[str, Any],
    best: int | None = None,
) -> None:
    """Write ``README.md``: what the model is, how it was made, from which cache, and what to cite.

    Args:
        folder: the run's.
        config: its options.
        objective: with its hyperparameters.
        manifest: of the cache.
        metrics: the last logged figures.
        best: the step whose checkpoint was kept as the best, where one was chosen.
    """
    reference = manifest.identity["reference"]
    start = config.model or manifest.provenance.get("reference", "the cached reference")
    adapter = config.lora is not None and not config.merge
    lines = [
        "---",
        *([f"base_model: {start}", "library_name: peft"] if adapter else ["library_name: transformers"]),
        "pipeline_tag: text-generation",
        f"tags: [tdpo, preference-optimisation, {config.objective_name}]",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"A policy trained with the objective `{config.objective_name}` from a cached reference model, "
        f"starting at `{start}`. The reference was not in memory during training.",
        "",
        *(_loading(config, folder, start) if adapter else []),
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
        f"* identity: `{identity_hash(manifest.identity)}` (SHA-256 of the manifest's `identity`)",
        f"* reference: `{manifest.provenance.get('reference')}`"
        f" ({', '.join(f'{k} {v}' for k, v in reference.items() if v is not None)})",
        f"* pairs: {manifest.rows:,}; completion tokens: {manifest.completion_tokens:,}",
        f"* made with: {', '.join(f'{k} {v}' for k, v in manifest.provenance.get('versions', {}).items())}",
        "",
        *_evaluation(metrics, config, best),
        *_citation(objective),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _loading(config: FitConfig, folder: Path, start: str) -> list[str]:
    bits = f", trained beside it in {config.quantization}" if config.quantization is not None else ""
    return [
        "## How to load it",
        "",
        f"This folder holds a LoRA of rank {config.lora} for `{start}`{bits}, not a whole model:",
        "",
        "```python",
        "from peft import AutoPeftModelForCausalLM",
        "",
        f'model = AutoPeftModelForCausalLM.from_pretrained("{folder.name}")',
        "model = model.merge_and_unload()  # where one model is wanted",
        "```",
        "",
    ]


def identity_hash(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what a cache holds, as its manifest's ``identity`` says it."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _evaluation(metrics: dict[str, Any], config: FitConfig, best: int | None) -> list[str]:
    shown = {name: value for name, value in metrics.items() if "/" in name or name.endswith("loss")}
    if not shown:
        return []
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(shown.items())]
    kept = []
    if best is not None:
        kept = [
            f"The policy is that of step {best:,}, the best by `{config.best}`; so are its evaluations.",
            "",
        ]
    return ["## Last figures", "", *kept, "| figure | value |", "| --- | --- |", *rows, ""]


def _citation(objective: Objective) -> list[str]:
    if not objective.paper:
        return []
    return ["## Cite", "", f"The objective: {objective.paper}.", ""]
