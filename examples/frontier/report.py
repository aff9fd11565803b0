"""From finished results to the page and its pictures."""

import shutil
from pathlib import Path

from . import figures
from .analyse import Experiment
from .page import fill
from .store import RESULTS
from .tables import blocks

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"


def report(results: Path = HERE / RESULTS, docs: Path = DOCS) -> list[Path]:
    """Draw the pictures of ``results`` into ``docs``, and fill in the tables of its frontier.md.

    Returns:
        What was written.

    Raises:
        UnusableError: there are no results, or fewer than two seeds are finished.
    """
    experiment = Experiment.read(results)
    page = docs / "frontier.md"
    filled = fill(page.read_text(encoding="utf-8"), blocks(experiment))
    written = figures.draw(experiment, docs)
    page.write_text(filled, encoding="utf-8")
    return [page, *written]


def keep(work: Path) -> None:
    """Copy the results of a run beside this file, from where they are told of."""
    shutil.copyfile(work / RESULTS, HERE / RESULTS)
