"""What of a run is published: its policy, how it was made, what was found of it; texts only when asked."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ..config.file import CONFIG_FILE
from ..errors import ConfigError
from ..runs.checkpoints import checkpoint_step, checkpoints, holds_model
from ..runs.folder import RunFolder
from ..runs.lines import METRICS_FILE
from ..runs.record import RECORD_FILE
from ..training.card import CARD_FILE, run_card
from .results import evaluations, of_policy, with_results

REPORT_FILE = "report.html"

MODEL_CONFIGS = ("config.json", "adapter_config.json")
"""The files by one of which a folder is known as a model's."""

_MODEL = (
    *MODEL_CONFIGS, "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model.bin.index.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "configuration_*.py", "modeling_*.py", "tokenization_*.py",
)  # fmt: skip
_ABOUT = (METRICS_FILE, CONFIG_FILE, RECORD_FILE)
_FOUND = "eval/*.json"
_SAMPLES = ("samples.jsonl", "eval/*.parquet")


@dataclass(frozen=True)
class Content:
    """Files of a push, by their names in the target."""

    card: str
    files: dict[str, Path]
    """All but the card."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What is in the run's folder and could go -> why it does not."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, the card among them."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return {CARD_FILE: len(self.card.encode()), **sizes}


def is_published(name: str) -> bool:
    """Whether a push may write a file of this name."""
    patterns = (*_MODEL, *_ABOUT, _FOUND, *_SAMPLES, CARD_FILE, REPORT_FILE)
    return any(fnmatchcase(name, one) and name.count("/") == one.count("/") for one in patterns)


def content_of(
    run: RunFolder,
    *,
    checkpoint: int | None = None,
    samples: bool = False,
    report: bool = False,
    name: str = "",
) -> Content:
    """What is published of a run.

    Args:
        run: finished, unless ``checkpoint`` is given.
        checkpoint: the step whose policy goes, in place of the one that the run kept.
        samples: also what holds texts: completions, and evaluations pair by pair.
        report: also the run's report, which shows texts.
        name: under which the card says that the policy is loaded; the run's own when empty.

    Raises:
        ConfigError: the run has not come to its end, there is no such checkpoint, or its card cannot be
            read.
    """
    folder = _policy_folder(run, checkpoint)
    files = _matching(folder, _MODEL) | _matching(run.path, _ABOUT)
    left_out = {}
    found = evaluations(_matching(run.path, (_FOUND,)))
    ours = of_policy(found, folder)
    for each in found:
        if each in ours:
            files[each.name] = each.path
        else:
            left_out[each.name] = "is an evaluation of another policy than the one that goes"
    for inside, asked, option in (
        (_matching(run.path, _SAMPLES), samples, "--with-samples"),
        (_matching(run.path, (REPORT_FILE,)), report, "--report"),
    ):
        if asked:
            files |= inside
        else:
            left_out |= dict.fromkeys(inside, f"may hold texts of the data; {option} sends it")
    written = run.path / CARD_FILE
    if checkpoint is None and written.is_file():
        card = written.read_text(encoding="utf-8")
    else:
        card = run_card(run, step=checkpoint if checkpoint is not None else run.best_step)
    card = with_results(card, run, ours)
    if name:
        card = card.replace(f'from_pretrained("{run.name}")', f'from_pretrained("{name}")')
    return Content(card, dict(sorted(files.items())), left_out)


def _policy_folder(run: RunFolder, checkpoint: int | None) -> Path:
    steps = [checkpoint_step(path) for path in checkpoints(run.path)]
    there = f"; there are {', '.join(map(str, steps))}" if steps else "; it has none"
    if checkpoint is None:
        if run.finished:
            return run.path
        either = f", or push one of its checkpoints with --checkpoint N{there}" if steps else ""
        raise ConfigError(
            f"{run.path}: has not come to its end (step {run.steps:,}): run the same tdpo fit with --resume"
            f"{either}"
        )
    folder = run.path / f"checkpoint-{checkpoint}"
    if not folder.is_dir():
        raise ConfigError(f"--checkpoint {checkpoint}: {run.path} has no checkpoint of that step{there}")
    if not holds_model(folder):
        raise ConfigError(
            f"--checkpoint {checkpoint}: {folder} holds no whole model: it was cut short, or saved in the "
            "pieces of several GPUs; choose another, or let the run come to its end"
        )
    return folder


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}
