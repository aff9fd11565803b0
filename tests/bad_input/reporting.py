"""Reports on runs.

A metrics file that is cut short is read as far as it goes: the page and stderr name the cut.
"""

from report_runs import make_run

from .case import Case

REPORT = "tdpo report runs/mine --pairs 0"


def a_run(world):
    make_run(world.folder / "runs" / "mine", steps=4, evaluate=2)


def nothing_logged(world):
    a_run(world)
    world.write("runs/mine/run.json", "{}")
    (world.folder / "runs" / "mine" / "metrics.jsonl").unlink()


def no_whole_line(world):
    a_run(world)
    world.write("runs/mine/metrics.jsonl", '{"step": 1, "lo')


def no_charts(world):
    a_run(world)
    world.without("vl_convert")


def a_file_in_the_way(world):
    a_run(world)
    world.write("taken", "")


CASES = (
    Case("a report on no folder", "tdpo report runs/none", "runs/none: no such folder"),
    Case("a report on a cache", "tdpo report tdpo-cache", "it is a cache: see tdpo cache info"),
    Case("a report on the folder above", "tdpo report runs", "there are some in it: runs/mine", a_run),
    Case("a report on a run twice", f"{REPORT} runs/../runs/mine", "is given twice", a_run),
    Case("a report on a run that logged nothing", REPORT, "nothing to report: .*not there", nothing_logged),
    Case(
        "a report on metrics cut in their first line", REPORT, "nothing to report: .*cut short", no_whole_line
    ),
    Case(
        "a report on an unknown figure",
        f"{REPORT} --metric rewards/margin",
        "no run logged a figure of that name; did you mean 'rewards/margins'",
        a_run,
    ),
    Case(
        "a report that cannot be written",
        f"{REPORT} --out taken/report.html",
        "--out taken/report.html: .*choose a file that can be written",
        a_file_in_the_way,
    ),
    Case("a report in a folder's place", f"{REPORT} --out model", "--out model: is a folder", a_run),
    Case(
        "pictures of a report in a file's place",
        f"{REPORT} --png taken",
        "--png taken: .*choose a folder that can be written",
        a_file_in_the_way,
        keeps=True,
    ),
    Case("a report without the library of its charts", REPORT, r"pip install 'tdpo\[report\]'", no_charts),
    Case(
        "a report on pairs of a cache that is not there",
        "tdpo report runs/mine --cache gone",
        "gone",
        a_run,
    ),
    Case(
        "a report on a pair that is not in the cache",
        "tdpo report runs/mine --cache tdpo-cache --pair 0123456789abcdef",
        "--pair 0123456789abcdef: .*has no pair of that id",
        a_run,
    ),
    Case(
        "pairs of a report that asks no policy", f"{REPORT} --pair 01", "--pair 01: no policy is asked", a_run
    ),
)
