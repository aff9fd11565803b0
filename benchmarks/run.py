"""One door to the benchmarks.

    python benchmarks/run.py                      run all, one after the other
    python benchmarks/run.py NAME [OPTIONS ...]   run one; --help after the name shows its options
    python benchmarks/run.py --list               what there is
    python benchmarks/run.py --quick              all, at tiny sizes
    python benchmarks/run.py --markdown FILE ...  tables of results files, for docs/benchmarks.md

Options after no name go to each benchmark. Each writes NAME.json and NAME.png into benchmarks/results, or
into the folder given with --results.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

BENCHMARKS = {
    "build_speed": "tokens/s of a build, against the bare body of its model and TRL's precompute",
    "training_step": "time and memory of a training step, against TRL's and both models in memory",
    "reading": "completion tokens/s read from a cache by one core, and the memory that takes",
    "start": "seconds until tdpo --help has answered, against a bare interpreter",
    "scaling": "memory and time as rows, vocabulary and lengths grow",
}
"""Those that need nothing prepared."""

OTHERS = {
    "kill_build": "a build killed at random instants and resumed, against one left alone",
    "cache_size": "bytes a completion token against the error of the KL that they buy",
    "kl_estimators": "error of the sampled KL and its gradient; needs --ref, --policy and --cache",
}
"""Those with options of their own, run by name."""


def main(words: list[str]) -> int:
    """Run what the command line asks for; the exit status of the first that fails."""
    known = {**BENCHMARKS, **OTHERS}
    if words[:1] == ["--list"]:
        for name, what in known.items():
            print(f"{name:<14} {what}")
        return 0
    if words[:1] == ["--markdown"]:
        from results import markdown

        print("\n\n".join(markdown(file) for file in words[1:]))
        return 0
    if words and not words[0].startswith("-"):
        names, words = words[:1], words[1:]
        if names[0] not in known:
            print(f"no benchmark {names[0]!r}: there are {', '.join(known)}", file=sys.stderr)
            return 2
    else:
        names = list(BENCHMARKS)
    for name in names:
        print(f"== {name}: {known[name]}", flush=True)
        if status := subprocess.call([sys.executable, str(HERE / f"{name}.py"), *words]):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
