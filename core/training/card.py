"""README.md of a run: the model card, which tells how to load, evaluate and make the policy again."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ...cache.manifest import identity_hash
from ..config.build import BuildConfig
from ..config.command import fit_command
from ..config.evaluation import eval_caches, figure_prefix
from ..runs.figures import kept_figures
from ..runs.folder import RunFolder

CARD_FILE = "README.md"
DEFAULT_CACHE = BuildConfig.out

# Files of the data that are named one by one.
_FILES = 5

_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))

# A figure of an evaluation -> its metric in a hub's index of results: type, and name.
_METRICS = {
    "rewards/accuracies": ("accuracy", "reward accuracy"),
    "rewards/margins": ("reward_margin", "reward margin"),
    "kl/chosen": ("sequential_kl_chosen", "sequential KL of chosen, nats"),
    "kl/rejected": ("sequential_kl_rejected", "sequential KL of rejected, nats"),
    "loss": ("loss", "loss of the objective"),
}


def write_card(folder: Path) -> None:
    """Write the card of the finished run in ``folder``, from what the run has left there."""
    run = RunFolder.open(folder)
    (folder / CARD_FILE).write_text(run_card(run, step=run.best_step), encoding="utf-8")


def run_card(run: RunFolder, *, step: int | None = None) -> str:
    """The card of a run, whose policy is that of ``step``, or of its last."""
    figures = kept_figures(run.events, step)
    metadata = _metadata(run, figures).to_yaml(line_break="\n")
    parts = [
        f"---\n{metadata}\n---\n\n# {run.name}\n",
        _what(run),
        _loading(run),
        _commands(run),
        _made_of(run),
        _figures(figures, run, step),
        _citation(run),
    ]
    return "\n".join(part for part in parts if part)


def _metadata(run: RunFolder, figures: Mapping[str, float]) -> ModelCardData:
    adapter = _is_adapter(run)
    results = _results(run, figures)
    objectives = dict.fromkeys(re.split(r"[+-]", run.config.objective_name))
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        # A folder on some machine is no model that a hub knows, and a hub refuses such a card.
        base_model=_of_hub(run.record.get("policy", {}).get("name")),
        datasets=_datasets(run) or None,
        tags=[
            "tdpo",
            "preference-optimisation",
            *objectives,
        ],
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _results(run: RunFolder, figures: Mapping[str, float]) -> list[EvalResult]:
    results = []
    for name, place in eval_caches(run.config.eval_cache).items():
        dataset = run.provenance.get("evaluation", {}).get(name, {}).get("dataset")
        prefix = figure_prefix(name)
        own = {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}
        results += evaluation_results(own, name or Path(dataset or place).name, dataset)
    return results


def evaluation_results(figures: Mapping[str, float], name: str, dataset: str | None) -> list[EvalResult]:
    """Figures of an evaluation as a hub's index of results takes them.

    Args:
        figures: by name, such as ``rewards/accuracies``; those that the index has no place for are left out.
        name: what the data is called.
        dataset: its name on the hub, or what else the cache was built of, where that is known.
    """
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_of_hub(dataset) or "preference-pairs",
            dataset_name=name,
            metric_type=kind,
            metric_name=label,
            metric_value=figures[figure],
        )
        for figure, (kind, label) in _METRICS.items()
        if figure in figures
    ]


def _datasets(run: RunFolder) -> list[str]:
    data = run.record.get("cache", {}).get("base", {}).get("data", {})
    return [] if "files" in data or not (name := _of_hub(data.get("source"))) else [name]


def _of_hub(name: Any) -> str | None:
    """A name as the hub has them, ``USER/NAME`` or ``NAME``; None for what cannot be one."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)
    return str(name) if plain and not Path(name).exists() else None


def _is_adapter(run: RunFolder) -> bool:
    return run.config.lora is not None and not run.config.merge


def _what(run: RunFolder) -> str:
    rows = [
        f"A policy trained on preference pairs with the objective `{run.config.objective_name}`, starting "
        f"at `{_start(run)}`. What the reference model says of the pairs came from a cache; it was not in "
        "memory."
    ]
    if (finished := run.provenance.get("finished")) is None and run.record.get("provenance"):
        rows.append(f"The run has not come to its end: it has logged {run.steps:,} steps.")
    elif finished:
        rows.append(
            f"Trained for {finished['steps']:,} steps{_duration(run)} on {run.provenance['hardware']}."
        )
    return "\n".join(rows) + "\n"


def _duration(run: RunFolder) -> str:
    seconds = run.curve("train_runtime")
    if not seconds:
        return ""
    since = " since it was last resumed" if run.provenance.get("resumed") else ""
    spent = seconds[-1][1]
    unit, size = next((one for one in _UNITS if spent >= one[1]), _UNITS[-1])
    return f" in {spent / size:,.1f} {unit}{since}"


def _start(run: RunFolder) -> str:
    return str(run.provenance.get("start") or run.config.model or "the cached reference")


def _loading(run: RunFolder) -> str:
    name = run.name
    if _is_adapter(run):
        bits = f", trained beside it in {run.config.quantization}" if run.config.quantization else ""
        how = [
            f"It is a LoRA of rank {run.config.lora} for `{_start(run)}`{bits}, not a whole model:",
            "",
            "```python",
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "model = model.merge_and_unload()  # where one model is wanted",
            "```",
        ]
    else:
        how = [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
        ]
    return "\n".join(["## Load", "", *how, "", "## Evaluate", "", "```bash", *_evaluation(run), "```", ""])


def _evaluation(run: RunFolder) -> list[str]:
    places = eval_caches(run.config.eval_cache).values() or ["CACHE_OF_HELD_OUT_PAIRS"]
    return [f"tdpo eval {run.name} --cache {place}" for place in places]


def _commands(run: RunFolder) -> str:
    lines = list(_cache_commands(run.provenance.get("cache", {}), run.config.cache))
    for name, place in eval_caches(run.config.eval_cache).items():
        lines += _cache_commands(run.provenance.get("evaluation", {}).get(name, {}), place)
    lines.append(fit_command(run.config))
    versions = run.provenance.get("versions", {})
    made = ", ".join(f"{name} {value}" for name, value in versions.items()) or "versions not recorded"
    return "\n".join(
        [
            "## Make it again",
            "",
            f"With {made}; seed {run.config.seed}. All options, resolved, are in `tdpo.yaml`: "
            "`tdpo fit --config tdpo.yaml` is the last of these commands.",
            "",
            "```bash",
            *lines,
            "```",
            "",
        ]
    )


def _cache_commands(origin: Mapping[str, Any], place: str) -> list[str]:
    """What builds a cache at ``place``, and what adds to it; a comment where that was not recorded."""
    command = origin.get("command")
    if command is None:
        what = f" of {origin['dataset']} under {origin['reference']}" if origin.get("dataset") else ""
        lines = [f"# {place}: a cache{what}; how it was built is not recorded"]
    else:
        lines = [command + (f" --out {shlex.quote(place)}" if place != DEFAULT_CACHE else "")]
    for name, added in origin.get("added", {}).items():
        where = f" {shlex.quote(place)}" if place != DEFAULT_CACHE else ""
        lines.append(f"# {name}: how it was added is not recorded" if added is None else added + where)
    return lines


def _made_of(run: RunFolder) -> str:
    base, origin = run.record.get("cache", {}).get("base", {}), run.provenance.get("cache", {})
    if not base:
        return ""
    identity = origin.get("cache_sha256") or identity_hash(base)
    rows = [
        ("cache", f"`{identity}` (SHA-256 of its manifest's `identity`)"),
        (
            "pairs",
            f"{origin['rows']:,}, of {origin['completion_tokens']:,} completion tokens" if origin else "",
        ),
        ("reference", f"`{origin.get('reference')}`: {_plain(base.get('reference', {}))}"),
        ("tokenizer", _plain(base.get("tokenizer", {}))),
        ("data", f"`{origin.get('dataset')}`: {_data(base.get('data', {}))}"),
        ("cache made with", _plain(origin.get("versions") or {})),
        ("start", f"`{_start(run)}`: {_plain(run.record.get('policy', {}))}"),
        ("objective", f"`{_objective(run.record.get('objective'))}`"),
    ]
    rows += [
        (f"scores {name}", f"`{identity_hash(added)}` (SHA-256 of their `identity`)")
        for name, added in run.record["cache"].get("scores", {}).items()
    ]
    lines = [f"| {name} | {text} |" for name, text in rows if text]
    return "\n".join(["## What it was made of", "", "| | |", "| --- | --- |", *lines, ""])


def _plain(values: Mapping[str, Any]) -> str:
    found = {name: value for name, value in values.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _data(data: Mapping[str, Any]) -> str:
    files = [f"{one['name']} sha256 {one['sha256']}" for one in data.get("files", [])[:_FILES]]
    more = len(data.get("files", [])) - len(files)
    files += [f"and {more} more files"] if more > 0 else []
    kept = {name: data.get(name) for name in ("source", "config", "revision", "split", "rows", "content")}
    return ", ".join([*files, _plain(kept)])


def _objective(described: Any) -> str:
    """An objective with all its options as a call, from a record of it."""
    if isinstance(described, dict):
        options = ", ".join(f"{name}={_objective(v)}" for name, v in described.items() if name != "class")
        return f"{described['class'].rpartition('.')[2]}({options})" if "class" in described else options
    return f"[{', '.join(map(_objective, described))}]" if isinstance(described, list) else repr(described)


def _figures(figures: Mapping[str, float], run: RunFolder, step: int | None) -> str:
    shown = {name: value for name, value in figures.items() if "/" in name or name.endswith("loss")}
    if not shown:
        return ""
    kept = []
    if step is not None:
        by = f", the best by `{run.config.best}`" if run.config.best is not None and run.has_model else ""
        kept = [f"The policy is that of step {step:,}{by}; so are its evaluations.", ""]
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(shown.items())]
    return "\n".join(["## Last figures", "", *kept, "| figure | value |", "| --- | --- |", *rows, ""])


def _citation(run: RunFolder) -> str:
    paper = run.provenance.get("paper")
    return f"## Cite\n\nThe objective: {paper}.\n" if paper else ""
