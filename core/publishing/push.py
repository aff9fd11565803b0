"""Publishing a policy with its card, figures and report: what ``tdpo push`` does."""

import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..runs.folder import RunFolder
from .content import REPORT_FILE, Content, content_of
from .targets import FolderTarget, find_target


@dataclass(frozen=True)
class Push:
    """What was pushed, or would be."""

    run: str
    target: str
    files: dict[str, int]
    """Name -> bytes."""
    left_out: dict[str, str]
    """What of the run's folder could have gone -> why it did not."""
    commit: str | None
    """Of a repository on the hub; None elsewhere, and where nothing was sent."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a program."""
        return {**asdict(self), "bytes": self.bytes}


def push_run(
    run: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    checkpoint: int | None = None,
    with_samples: bool = False,
    report: bool = False,
    private: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Push:
    """Upload a policy to the hub, or copy it to a folder; what ``tdpo push`` does.

    Its card, ``metrics.jsonl``, ``tdpo.yaml``, ``run.json`` and the evaluations of this policy go with it;
    checkpoints and the optimiser's state do not, nor do texts of the data unless they are asked for.

    Args:
        run: the run's folder.
        target: ``USER/NAME`` on the hub, a folder, or the URL of one.
        checkpoint: the step whose policy goes; the one that the run kept when not given.
        with_samples: also completions, and evaluations pair by pair.
        report: also the run's ``report.html``; it is made where there is none.
        private: whether a repository that is made is private.
        revision: a branch of the repository; made where it is missing.
        overwrite: replace what an earlier push has put there.
        dry_run: send nothing, and look at nothing on the hub: say what would go.
        quiet: show no progress.

    Raises:
        TdpoError: no finished run there, something else in the target's place, or the target refuses.
    """
    opened = RunFolder.open(run)
    place = find_target(os.fspath(target), private=private, revision=revision)
    if isinstance(place, FolderTarget):
        place.check(opened)
    collect = partial(
        content_of, opened, checkpoint=checkpoint, samples=with_samples, report=report, name=place.name
    )
    content = collect()
    if report and REPORT_FILE not in content.files:
        if dry_run:
            content.left_out[REPORT_FILE] = "is not there yet: it would be made, and go too"
        else:
            _make_report(opened, quiet=quiet)
            content = collect()
    commit = None
    if not dry_run:
        commit = place.send(content, _message(opened, content, checkpoint), overwrite=overwrite, quiet=quiet)
    return Push(str(opened.path), place.place, content.sizes, content.left_out, commit)


def _make_report(run: RunFolder, *, quiet: bool) -> None:
    from ..report.report import report

    report(run.path, out=run.path / REPORT_FILE, quiet=quiet)


def _message(run: RunFolder, content: Content, checkpoint: int | None) -> str:
    step = f", step {checkpoint:,}" if checkpoint is not None else ""
    return f"{run.name}: a policy trained with {run.config.objective_name}{step}"
