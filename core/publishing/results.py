"""What ``tdpo eval`` found of a run, entered into its card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from ..errors import ConfigError, ModelError, first_line
from ..evaluating.summary import FORMAT
from ..models import find_start
from ..runs.folder import RunFolder
from ..training.card import CARD_FILE, evaluation_results

_HEADING = "## Evaluated"


@dataclass(frozen=True)
class Found:
    """An evaluation's file."""

    name: str
    """In the run's folder, such as ``eval/eval.json``."""
    path: Path
    document: dict[str, Any]


def evaluations(files: Mapping[str, Path]) -> list[Found]:
    """Those of the files that ``tdpo eval`` wrote."""
    found = []
    for name, path in files.items():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(document, dict) and document.get("format") == FORMAT:
            found.append(Found(name, path, document))
    return found


def of_policy(found: Sequence[Found], folder: Path) -> list[Found]:
    """The evaluations of the model in ``folder``, by the content of its weights."""
    if not found:
        return []
    try:
        identity = find_start(str(folder)).identity()
    except ModelError:  # an adapter whose base is not here: nothing says whose they are
        return []
    return [each for each in found if each.document["runs"][0]["identity"] == identity]


def with_results(card: str, run: RunFolder, found: Sequence[Found]) -> str:
    """``card`` with evaluations in its metadata, for a hub's index of results, and as a table.

    Raises:
        ConfigError: its metadata cannot be read.
    """
    if not found:
        return card
    try:
        edited = ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{run.path / CARD_FILE}: its metadata cannot be read ({first_line(error)}); mend it, or remove "
            "the file to have it made again"
        ) from error
    data: Any = edited.data
    results = [result for each in found for result in _results(each, run)]
    new = {(one.dataset_name, one.metric_type) for one in results}
    before = [one for one in data.eval_results or [] if (one.dataset_name, one.metric_type) not in new]
    data.model_name = data.model_name or run.name
    data.eval_results = [*before, *results]
    if _HEADING not in edited.text:
        edited.text = "\n".join([edited.text.rstrip("\n"), "", _HEADING, "", *_tables(found)])
    return str(edited)


def _results(found: Found, run: RunFolder) -> list[EvalResult]:
    results = []
    for each in _own(found):
        figures = {
            name: one["value"] for name, one in each["figures"].items() if one.get("value") is not None
        }
        results += evaluation_results(figures, *_data_of(each, run))
    return results


def _data_of(evaluation: Mapping[str, Any], run: RunFolder) -> tuple[str, str | None]:
    """What a hub's index calls the data; the run's own evaluation caches by what they were built of."""
    for name, origin in run.provenance.get("evaluation", {}).items():
        if origin.get("identity_sha256") == evaluation["identity_sha256"]:
            return name or Path(origin.get("dataset") or evaluation["place"]).name, origin.get("dataset")
    return evaluation["cache"] or Path(evaluation["place"]).name, None


def _own(found: Found) -> list[dict[str, Any]]:
    """The evaluations of the run itself, where others were compared with it."""
    document = found.document
    return [each for each in document["evaluations"] if each["run"] == document["runs"][0]["name"]]


def _tables(found: Sequence[Found]) -> list[str]:
    lines = []
    for each in found:
        document = each.document
        confidence = document["options"]["confidence"]
        lines += ["```bash", document["command"], "```", ""]
        for evaluation in _own(each):
            lines += [
                f"On {evaluation['pairs']:,} pairs of `{evaluation['place']}` (cache identity "
                f"`{evaluation['identity_sha256']}`), with {confidence:.0%} intervals:",
                "",
                "| figure | value | from | to |",
                "| --- | --- | --- | --- |",
                *(_row(name, one) for name, one in sorted(evaluation["figures"].items())),
                "",
            ]
    return lines


def _row(name: str, one: Mapping[str, Any]) -> str:
    cells = ["" if one.get(part) is None else f"{one[part]:.6g}" for part in ("value", "low", "high")]
    return f"| {name} | {' | '.join(cells)} |"
