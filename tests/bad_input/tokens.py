"""Looking at a run token by token.

Pairs are named before any policy is opened.
"""

import json

from .case import Case
from .evaluating import a_run as evaluated

REPORT = "tdpo report mine"


def a_run(world):
    evaluated(world)
    world.write("mine/metrics.jsonl", json.dumps({"step": 1, "loss": 0.69}) + "\n")


CASES = (
    Case(
        "a pair that is not in the cache",
        f"{REPORT} --pair cafe",
        "--pair cafe: tdpo-cache has no pair of that id; its column pair_id has them, such as [0-9a-f]{32}$",
        a_run,
        ((r"[0-9a-f]{32}", "ID"),),
    ),
    Case(
        "the first digits of several pairs",
        f"{REPORT} --pair 0",
        r"--pair 0: \d+ pairs of tdpo-cache have ids that begin so, such as .*; give more digits",
        a_run,
        ((r"[0-9a-f]{32}", "ID"), (r"\d+ pairs", "2 pairs")),
    ),
    Case(
        "values of tokens where a folder is",
        f"{REPORT} --pairs 2 --show 1 --tokens model",
        "--tokens model: Is a directory; choose a file that can be written",
        a_run,
    ),
)
