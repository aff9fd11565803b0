"""docs/plugins/tutorial.md, from its first block to its last: commands, files, edits, and what comes out.

It has a virtual environment of its own, which sees this one's packages and changes none of them. Beside the
marks of doc_blocks, the page has ``fails`` for a command that must, and ``background`` for one that runs on.
"""

import os
import re
import shlex
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from doc_blocks import blocks_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plugins" / "tutorial.md"
BLOCKS = blocks_of(PAGE)
_STANDARD = {os.path.abspath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
_STANDARD |= {os.path.join(place, "lib-dynload") for place in _STANDARD}
# Commands of this environment; what the page installs itself comes with its own.
COMMANDS = {"tdpo": "tdpo", "pip": "pip", "pytest": "pytest"}


def make_environment(folder):
    """A virtual environment that sees this one's packages: the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    seen = dict.fromkeys(map(os.path.abspath, [*site.getsitepackages(), *sys.path]))
    # The standard library is there by itself; what is added here, pip takes away where it builds.
    without = {str(Path(__file__).parent), *_STANDARD}
    lines = [
        f"import site; site.addsitedir({place!r})"
        for place in seen
        if Path(place).is_dir() and place not in without
    ]
    (packages / "this_environment.pth").write_text("\n".join(lines))
    for name, module in COMMANDS.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(folder / "bin" / "python"))} -m {module} "$@"\n')
        script.chmod(0o755)
    return folder / "bin"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass
class Shell:
    """Runs blocks one after another, each where the last one left off."""

    folder: Path
    path: Path
    port: int
    running: list = field(default_factory=list)

    def environment(self):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))
        }
        return kept | {
            "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.path.parent),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    def text(self, block):
        """The block, at a port that no one else has."""
        return block.text.replace("8080", str(self.port))

    def run(self, block):
        """What it says, and its exit status."""
        left = self.folder.parent / "left"
        script = f"set -e\n{self.text(block)}\npwd > {shlex.quote(str(left))}\n"
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        if left.exists():
            self.folder = Path(left.read_text().strip())
        return result.stdout, result.returncode

    def start(self, block):
        """Leave it running until :meth:`stop`."""
        process = subprocess.Popen(
            ["bash", "-c", f"set -e\n{self.text(block)}"],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(process)
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"line {block.line}: it does not answer at port {self.port}")

    def stop(self):
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture
def shell(tmp_path, cache):
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(cache, folder / "tdpo-cache")
    (folder / "tdpo.yaml").write_text("fit: {max_steps: 2}\n")
    one = Shell(folder, make_environment(tmp_path / "environment"), free_port())
    yield one
    one.stop()


def edit(folder, text):
    """Apply a diff of a page: lines with - are there, in this order, and those with + come in their place."""
    name, *lines = text.splitlines()
    path = folder / name.removeprefix("--- ")
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in f" {sign}") for sign in "-+")
    source = path.read_text()
    assert source.count(old) == 1, f"{path} does not hold {old!r} once"
    path.write_text(source.replace(old, new))


def words(text):
    """Without colours, and with one space for any."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split())


@pytest.mark.slow
def test_the_tutorial_from_its_first_block_to_its_last(shell):
    said = ""
    for block in BLOCKS:
        at = f"{PAGE.name}:{block.line}"
        named = block.note.partition("file: ")[2] or block.file
        if block.not_run is not None:
            continue
        if block.language == "text":
            for line in block.text.splitlines():
                assert words(line) in words(said), f"{at}: {line!r} is not in what was said:\n{said}"
        elif block.language == "diff":
            edit(shell.folder, block.text)
        elif named:
            (shell.folder / named).write_text(block.text, encoding="utf-8")
        elif block.note == "background":
            shell.start(block)
        else:
            assert block.language == "bash", f"{at}: what is a block of {block.language!r}?"
            said, code = shell.run(block)
            assert (code != 0) == (block.note == "fails"), f"{at}: ended with {code}:\n{said}"
    assert (shell.folder / "runs" / "chi" / "model.safetensors").is_file()
    # Each piece was built, uploaded and installed from the index, not from the folder.
    assert sorted(path.name for path in (shell.folder / "index").glob("*.*")) == [
        "tdpo_chi_po-0.1.0-py3-none-any.whl",
        "tdpo_chi_po-0.1.0.tar.gz",
    ]
    (installed,) = shell.path.parent.glob("lib/python*/site-packages/tdpo_chi_po")
    assert (installed / "objective.py").is_file()


def test_only_what_cannot_be_taken_back_is_not_run():
    assert [block.commands for block in BLOCKS if block.not_run is not None] == [
        ["twine upload tdpo-chi-po/dist/*"]
    ]


def test_a_diff_that_does_not_fit_is_said(tmp_path):
    (tmp_path / "a.py").write_text("one\n")
    with pytest.raises(AssertionError, match="does not hold"):
        edit(tmp_path, "--- a.py\n-two\n+three\n")
    edit(tmp_path, "--- a.py\n-one\n+two\n+three\n")
    assert (tmp_path / "a.py").read_text() == "two\nthree\n"
