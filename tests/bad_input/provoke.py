"""Running a case, and the page that lists what they all said."""

import contextlib
import hashlib
import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from support import write_pairs

from tdpo.core.cli import main

from .case import Case, Materials, Store, World

PROGRESS = re.compile(r"[a-z ]+: [\d,]+ (of [\d,]+ )?[a-z]+, [\d.,]+ [a-z]+/s| *(step|eval.*) +\d+  loss ")


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    stderr: str
    changed: tuple[str, ...] = ()
    """Files of the working folder that are gone, changed or new."""

    @property
    def lines(self):
        """What it said on stderr, without progress."""
        return [line for line in self.stderr.splitlines() if not PROGRESS.match(line)]


def run_command(command):
    """A command line, in this process."""
    words = shlex.split(command)
    assert words[0] == "tdpo"
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words[1:])
        except SystemExit as stopped:
            code = stopped.code
        except BaseException:
            return Outcome(-1, traceback.format_exc())
    return Outcome(code, err.getvalue())


@contextlib.contextmanager
def prepared(case: Case, materials: Materials):
    """The case's folder, as the current one, with the mistake in it."""
    with tempfile.TemporaryDirectory(prefix="tdpo-bad-input-") as folder, ExitStack() as during:
        path = Path(folder).resolve()
        during.enter_context(contextlib.chdir(path))
        # A case may import a module of its folder, in which nothing is to change.
        during.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
        sys.dont_write_bytecode = True
        case.prepare(World(path, materials, during))
        yield path


def provoke(case: Case, materials: Materials) -> Outcome:
    """Make the case's situation, run its command, and look at what it left."""
    with prepared(case, materials) as folder:
        before = content(folder)
        outcome = run_command(case.command)
        after = content(folder)
    differing = before.keys() & after.keys() if case.keeps else before.keys() | after.keys()
    changed = sorted(name for name in differing if before.get(name) != after.get(name))
    if case.keeps:
        changed += sorted(before.keys() - after.keys())
    stderr = outcome.stderr.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
    return Outcome(outcome.code, stderr, tuple(changed))


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder with its checksum, and every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def make_materials(folder: Path) -> Materials:
    """The materials that the test fixtures also make."""
    from support import make_model, make_tokenizer

    import tdpo

    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = write_pairs(folder / "pairs.jsonl", 48)
    tdpo.build_cache(folder / "model", pairs, folder / "tdpo-cache", shard_rows=20, quiet=True)
    return Materials(folder / "model", pairs, folder / "tdpo-cache", Store(folder))


def row(case: Case, outcome: Outcome) -> str:
    """The case's line of the page."""
    message = outcome.lines[0].removeprefix("tdpo: ") if outcome.lines else ""
    for pattern, text in case.hide:
        message = re.sub(pattern, text, message)
    cells = (case.title, f"`{case.command}`", f"`{message}`" if "`" not in message else message)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


INTRODUCTION = """\
# What is said about bad input

A mistake gets one line on stderr, `tdpo: ` and what is wrong, where, and what to do; the exit code is 2, and
nothing that was there is lost. The lines below are what the commands say: this page is written by
`python tests/bad_input_table.py`, which makes each situation for real and runs the command, and the tests
compare it with what they see. Interrupted by Ctrl-C a command says one line too and exits with 130; exit code
1 means that a check (`tdpo cache verify`) found a fault.
"""


def page(groups, rows: dict[Case, str]) -> str:
    """docs/errors.md, from each case's row."""
    parts = [INTRODUCTION]
    for group in groups:
        title, _, note = group.__doc__.strip().partition("\n\n")
        table = ["| what is wrong | command | tdpo: |", "| --- | --- | --- |", *map(rows.get, group.CASES)]
        parts.append("\n".join([f"## {title.rstrip('.')}", "", *([note, ""] if note else []), *table, ""]))
    return "\n".join(parts)
