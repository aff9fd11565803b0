"""Real preference data through every stage: a reference, two caches, DPO and TDPO2 from the same cache.

Runs the commands of README.md one after the other, prints each, and keeps what it said and how long it took.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).parent))


def main() -> None:
    """Run everything, then collect the figures."""
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    done = []
    for name, command in commands(options):
        done.append(run(name, command, options.work))
        (options.work / "commands.json").write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, str(HERE / "figures.py"), str(options.work)], check=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("train", type=Path, help="JSON lines with `chosen` and `rejected` dialogues")
    parser.add_argument("test", type=Path, help="the same, held out")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--steps", type=int, default=400, help="steps of the reference's training")
    parser.add_argument("--limit", type=int, help="use only the first rows, for a quick look")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of the two fits")
    parser.add_argument("--beta", type=float, default=0.1, help="of the two objectives")
    return parser.parse_args()


def commands(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Name and words of every command, in order."""
    work, limit = options.work, ["--limit", str(options.limit)] if options.limit else []
    train_reference = ["python", str(HERE / "train_reference.py"), str(options.train)]
    build = ["tdpo", "cache", "build", "--ref", str(work / "reference")]
    build += ["--shard-rows", "256", *limit]
    fit = ["tdpo", "fit", "--cache", str(work / "cache"), "--eval-cache", str(work / "cache-test")]
    fit += ["--eval-steps", "35", "--logging-steps", "5", "--learning-rate", str(options.learning_rate)]
    fit += ["--warmup-steps", "10", "--set", f"beta={options.beta}", "--overwrite"]
    return [
        ("reference", [*train_reference, "--out", str(work / "reference"), "--steps", str(options.steps)]),
        ("cache", [*build, "--dataset", str(options.train), "--out", str(work / "cache"), "--overwrite"]),
        (
            "cache-test",
            [*build, "--dataset", str(options.test), "--out", str(work / "cache-test"), "--overwrite"],
        ),
        ("dpo", [*fit, "--plugin", "dpo", "--output", str(work / "runs" / "dpo")]),
        ("tdpo2", [*fit, "--plugin", "tdpo2", "--output", str(work / "runs" / "tdpo2")]),
    ]


def run(name: str, command: list[str], work: Path) -> dict[str, object]:
    """Run one command, showing its output and keeping it in ``NAME.log``; stop where one fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    # This Python and its tdpo, not whichever come first on the path.
    words = [sys.executable, *command[1:]] if command[0] == "python" else [sys.executable, "-m", *command]
    start = time.monotonic()
    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in process.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
    if process.wait() != 0:
        sys.exit(f"run.py: {name} failed with exit code {process.returncode}")
    return {"name": name, "command": shlex.join(command), "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    main()
