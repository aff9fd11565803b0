"""Every benchmark runs, at sizes that measure nothing, and leaves a table, JSON and a picture.

TRL's part runs where trl is installed; elsewhere it is left out, and the table says so."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

NAMES = ("build_speed", "reading", "scaling")


def run(*words, check=True):
    command = [sys.executable, str(BENCHMARKS / "run.py"), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("benchmarks_common", BENCHMARKS / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_leaves_its_results(name, tmp_path):
    printed = run(name, "--quick", "--rounds", 1, "--results", tmp_path).stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.json", f"{name}.png"]
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["quick"] is True
    assert content["machine"]["versions"]["torch"]
    assert content["rows"]
    for row in content["rows"]:
        assert {"tokens"} <= set(row)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if name == "build_speed":
        without = importlib.util.find_spec("trl") is None
        assert ("TRL is not installed here" in printed) == without
        assert ("trl" in content["rows"][0]) != without
    shown = run("--markdown", tmp_path / f"{name}.json").stdout
    headings = [heading for heading, _ in content["columns"].values()]
    assert shown.splitlines()[0] == "| " + " | ".join(headings) + " |"
    assert content["machine"]["date"] in shown


def test_the_door_lists_every_benchmark_and_knows_no_other():
    listed = {line.split()[0] for line in run("--list").stdout.splitlines()}
    files = {file.stem for file in BENCHMARKS.glob("*.py")}
    assert set(NAMES) <= listed <= files
    wrong = run("bild_speed", check=False)
    assert wrong.returncode == 2
    assert "no benchmark 'bild_speed'" in wrong.stderr


def test_a_contender_that_dies_is_an_error_and_not_a_silence(common, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(RuntimeError, match="contender a died with exit status 3"):
        common.in_turns(str(script), {"a": ("a", {})}, 1)


def test_contenders_take_turns_and_change_who_goes_first(common, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import common\n"
        "def setup(case):\n"
        "    print('noise on the standard output')\n"
        "    log = pathlib.Path(case['log'])\n"
        "    def work():\n"
        "        with log.open('a') as file:\n"
        "            file.write(case['name'])\n"
        "        return {'held': len(bytearray(case['bytes']))}\n"
        "    return common.timed(work)\n"
        "common.serve({'it': setup})\n"
    )
    log = tmp_path / "log"
    sizes = {"a": 1, "b": 200_000_000, "c": 1}
    tasks = {name: ("it", {"name": name, "log": str(log), "bytes": size}) for name, size in sizes.items()}
    found = common.in_turns(str(script), tasks, 3)
    assert log.read_text() == "abc" + "abc" + "bca" + "cab"
    assert {name: len(one.measured) for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}
    added = {name: one.peak["peak"]["rss"] - one.peak["before"]["rss"] for name, one in found.items()}
    assert added["b"] > 190_000_000
    assert added["a"] < 50_000_000 > added["c"]


def test_tables_align_numbers_and_mark_what_is_missing(common):
    rows = [{"what": "a", "rate": 1234.5}, {"what": "longer"}]
    columns = {"what": ("job", ""), "rate": ("tokens/s", ",.0f")}
    assert common.table(rows, columns).splitlines() == [
        "job     tokens/s",
        "a          1,234",
        "longer         -",
    ]
