"""``tdpo demo``: prepare a folder, run the commands a user would type in it, and show what came out.

Importing this module imports no torch.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .folder import DemoFolder

if TYPE_CHECKING:
    from .size import Size

PLUGINS = ("dpo", "tdpo1", "tdpo2")
COMMANDS = (
    "cache build --ref model",
    "cache build --ref model --dataset data/heldout.jsonl --out tdpo-cache-heldout",
    *(f"fit --plugin {name}" for name in PLUGINS),
)


def run_demo(
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    prepare_only: bool = False,
    size: "str | Size" = "small",
    echo: Callable[[str], None] = print,
) -> None:
    """Run the demonstration in ``directory``; what ``tdpo demo`` does.

    Leaves ``results.json`` and ``results.png`` there, beside reference, data, caches and runs.

    Args:
        directory: made when it is not there; a demonstration that is there already goes on.
        seed: of everything random.
        prepare_only: stop before the first command.
        size: how large; the tests ask for "tiny".
        echo: takes the lines of text.

    Raises:
        ConfigError: the folder holds something else, or matplotlib is missing.
        SystemExit: a command failed; with its status.
    """
    from .picture import draw, require_matplotlib
    from .prepare import prepare
    from .results import collect, table

    start = time.monotonic()
    if not prepare_only:
        require_matplotlib()
    demo = prepare(directory, seed=seed, size=size, echo=echo)
    if prepare_only:
        echo(f"\nReady. Type, one after the other:\n\n  cd {shlex.quote(str(demo.path))}")
        for command in COMMANDS:
            echo(f"  tdpo {command}")
        return
    _run_commands(demo, echo)
    results = collect(demo, PLUGINS, seed, echo)
    demo.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, demo.picture)
    echo("\n" + table(results))
    echo(f"Picture: {demo.picture}    Numbers: {demo.results}    {time.monotonic() - start:.0f} s in all")
    echo(
        f"Next: cd {shlex.quote(str(demo.path))}, change something in tdpo.yaml, and type\n"
        "  tdpo fit --plugin tdpo2 --set alpha=1 --output runs/tdpo2-alpha1\n"
        "  tdpo plugins list"
    )


def _run_commands(demo: DemoFolder, echo: Callable[[str], None]) -> None:
    before = [name for name in PLUGINS if (demo.path / "runs" / name).exists()]
    if before:
        echo(f"Runs made before start over: {', '.join(before)}. Finished caches are used again.")
    for command in COMMANDS:
        if command.split()[-1] in before:
            command += " --overwrite"
        echo(f"\n$ tdpo {command}")
        sys.stdout.flush()  # the command writes to the same place, past our buffer
        status = subprocess.run([sys.executable, "-m", "tdpo", *command.split()], cwd=demo.path).returncode
        if status != 0:
            echo(f"tdpo {command}: ended with status {status}; the demonstration stops here.")
            raise SystemExit(status)
