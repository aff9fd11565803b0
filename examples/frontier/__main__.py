"""The experiment of docs/frontier.md: trains its policies, and makes its tables and pictures."""

import argparse
import sys
from pathlib import Path

from .plan import PLANS
from .report import DOCS, HERE, keep, report
from .run import run
from .store import RESULTS, UnusableError


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m frontier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train and measure; started again, it goes on")
    runs.add_argument("work", type=Path, help="folder of the reference, the caches and the results")
    runs.add_argument("--plan", choices=sorted(PLANS), default="full")
    runs.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    reports = commands.add_parser("report", help="tables and pictures of the page, from the results")
    reports.add_argument(
        "work",
        type=Path,
        nargs="?",
        help="a run's folder, whose results are kept here first",
    )
    reports.add_argument("--docs", type=Path, default=DOCS, help="folder of frontier.md and its pictures")
    given = parser.parse_args()
    try:
        if given.command == "run":
            return 1 if run(PLANS[given.plan], given.work, workers=given.workers) else 0
        if given.work is not None:
            keep(given.work)
        for place in report(HERE / RESULTS, given.docs):
            print(place)
    except UnusableError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is finished", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
