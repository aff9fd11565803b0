"""Seconds until `tdpo --help` has answered, against a bare interpreter.

    python benchmarks/start.py [--quick] [--rounds N] [--results DIR]

What a command costs before it does anything: nothing heavy is imported to print help, or to say that an
option is wrong. Every repetition is a new process; its files are in the system's cache.
"""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import contenders
import results

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import tdpo": ["-c", "import tdpo"],
    "tdpo --help": ["-m", "tdpo", "--help"],
    "tdpo fit --help": ["-m", "tdpo", "fit", "--help"],
    "tdpo cache build --help": ["-m", "tdpo", "cache", "build", "--help"],
}
TARGET = 0.25

COLUMNS = {
    "command": ("command", ""),
    "best": ("fastest, s", ".3f"),
    "median": ("median, s", ".3f"),
    "over": ("over bare, s", ".3f"),
}


def main() -> None:
    """Run every command and print a table."""
    options = results.arguments(__doc__, rounds=20).parse_args()
    tasks = {name: ("command", {"words": words}) for name, words in COMMANDS.items()}
    rows: list[dict[str, Any]] = []
    for name, one in contenders.in_turns(__file__, tasks, options.rounds).items():
        best = contenders.best(one.seconds)
        rows.append(
            {
                "command": name,
                "best": best,
                "median": statistics.median(one.seconds),
                "over": best - (rows[0]["best"] if rows else best),
                "seconds": one.seconds,
            }
        )
    took = next(row["median"] for row in rows if row["command"] == "tdpo --help")
    notes = [
        f"Target: tdpo --help in at most {TARGET} s: {took:.3f} s at the median, "
        f"{'met' if took <= TARGET else 'missed'}."
    ]
    results.finish("start", options, rows, COLUMNS, notes, draw)


def command(case: dict[str, Any]) -> contenders.Repeat:
    """A command of this interpreter, from its start to its end."""
    words = [sys.executable, *case["words"]]
    return contenders.timed(lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=True))


def draw(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Seconds of every command."""
    axes = figure.add_subplot()
    axes.boxplot([row["seconds"] for row in rows], tick_labels=[row["command"] for row in rows])
    axes.axhline(TARGET, color="grey", linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")


if __name__ == "__main__":
    contenders.serve({"command": command})
    main()
