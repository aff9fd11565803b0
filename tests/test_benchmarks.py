"""Every benchmark runs, at sizes that measure nothing, and leaves a table, JSON and a picture.

TRL's part runs where trl is installed; elsewhere it is left out, and the table says so."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

NAMES = ("build_speed", "training_step", "reading", "scaling", "start")
WITHOUT_TRL = importlib.util.find_spec("trl") is None


def run(*words, check=True):
    command = [sys.executable, str(BENCHMARKS / "run.py"), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def modules():
    """The benchmarks' own modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def contenders(modules):
    return modules("contenders")


@pytest.fixture(scope="module")
def results(modules):
    return modules("results")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_leaves_its_results(name, tmp_path):
    printed = run(name, "--quick", "--rounds", 1, "--results", tmp_path).stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}.json", f"{name}.png"]
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["quick"] is True
    assert content["machine"]["versions"]["torch"]
    assert content["rows"]
    if name != "start":
        assert all(row["tokens"] > 0 for row in content["rows"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if name in ("build_speed", "training_step"):
        assert ("TRL is not installed here" in printed) == WITHOUT_TRL
    if name == "build_speed":
        assert ("trl" in content["rows"][0]) != WITHOUT_TRL
    if name == "training_step":
        assert_same_work({row["who"]: row["loss"] for row in content["rows"]})
    shown = run("--markdown", tmp_path / f"{name}.json").stdout
    headings = [heading for heading, _ in content["columns"].values()]
    assert shown.splitlines()[0] == "| " + " | ".join(headings) + " |"
    assert content["machine"]["date"] in shown


def assert_same_work(losses):
    """Contenders that compute the same loss of the same pairs, each with code of its own, find the same."""
    dpo, exact = losses.pop("DPO"), losses.pop("TDPO2 exact")
    assert ("TRL DPO" in losses) != WITHOUT_TRL
    assert losses.pop("online TDPO2") == pytest.approx(exact, abs=1e-6)
    # The sparse sample estimates the KL.
    assert losses.pop("TDPO2") == pytest.approx(exact, abs=1e-3)
    assert losses
    assert all(loss == pytest.approx(dpo, abs=1e-6) for loss in losses.values())
    assert abs(exact - dpo) > 1e-6


def test_the_door_lists_every_benchmark_and_knows_no_other():
    listed = {line.split()[0] for line in run("--list").stdout.splitlines()}
    files = {file.stem for file in BENCHMARKS.glob("*.py")}
    assert set(NAMES) <= listed <= files
    wrong = run("bild_speed", check=False)
    assert wrong.returncode == 2
    assert "no benchmark 'bild_speed'" in wrong.stderr


def test_a_contender_that_dies_is_an_error_and_not_a_silence(contenders, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(RuntimeError, match="contender a died with exit status 3"):
        contenders.in_turns(str(script), {"a": ("a", {})}, 1)


def test_contenders_take_turns_and_change_who_goes_first(contenders, tmp_path):
    script = tmp_path / "benchmark.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import contenders\n"
        "def setup(case):\n"
        "    print('noise on the standard output')\n"
        "    log = pathlib.Path(case['log'])\n"
        "    def work():\n"
        "        with log.open('a') as file:\n"
        "            file.write(case['name'])\n"
        "        return {'held': len(bytearray(case['bytes']))}\n"
        "    return contenders.timed(work)\n"
        "contenders.serve({'it': setup})\n"
    )
    log = tmp_path / "log"
    sizes = {"a": 1, "b": 200_000_000, "c": 1}
    tasks = {name: ("it", {"name": name, "log": str(log), "bytes": size}) for name, size in sizes.items()}
    found = contenders.in_turns(str(script), tasks, 3)
    assert log.read_text() == "abc" + "abc" + "bca" + "cab"
    assert {name: len(one.measured) for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}
    added = {name: one.peak["peak"]["rss"] - one.peak["before"]["rss"] for name, one in found.items()}
    assert added["b"] > 190_000_000
    assert added["a"] < 50_000_000 > added["c"]


def test_tables_align_numbers_and_mark_what_is_missing(results):
    rows = [{"what": "a", "rate": 1234.5}, {"what": "longer"}]
    columns = {"what": ("job", ""), "rate": ("tokens/s", ",.0f")}
    assert results.table(rows, columns).splitlines() == [
        "job     tokens/s",
        "a          1,234",
        "longer         -",
    ]


def test_what_was_asked_for_is_said_to_be_missed_where_it_is(modules):
    step = modules("training_step")
    common = {"shape": "d=256, 4 layers, V=128k", "lengths": "1:1", "loss": 0.5}
    rows = [
        common | {"who": who, "seconds": [seconds, seconds], "peak": peak, "added": peak}
        for who, seconds, peak in (
            ("DPO", 1.0, 1.0),
            ("TRL DPO", 6.0, 3.0),
            ("TDPO2", 1.0, 1.1),
            ("TDPO2 exact", 2.0, 2.0),
            ("online TDPO2", 3.0, 4.0),
        )
    ]
    said = "\n".join(step.verdicts(rows, gpu=False))
    assert "DPO takes 0.17 of the time of TRL DPO (6.00 times as fast; target 5.00: met)" in said
    assert "and 0.33 of its peak memory (target 0.25: missed" in said
    assert "TDPO2 takes 1.00 of the time of DPO (1.00 times as fast; target 0.91: met)" in said
    assert "and 1.10 of its peak memory (target 1.05: missed" in said
    assert "TDPO2 takes 0.33 of the time of online TDPO2 (3.00 times as fast; target 4.00: missed)" in said
    assert "loss is 0.0e+00 from that of online TDPO2 (target 1e-05: met)" in said
    assert not step.verdicts(rows[:1], gpu=False)


def test_a_contender_without_room_on_the_gpu_is_left_out_and_the_rest_go_on(contenders, tmp_path, capfd):
    script = tmp_path / "benchmark.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import contenders\n"
        "class OutOfMemoryError(RuntimeError): pass\n"
        "def work():\n"
        "    raise OutOfMemoryError('CUDA out of memory')\n"
        "contenders.serve({'large': lambda case: work, 'small': lambda case: contenders.timed(int)})\n"
    )
    found = contenders.one_by_one(str(script), {name: (name, {}) for name in ("large", "small")}, 2)
    assert list(found) == ["small"]
    assert len(found["small"].seconds) == 2
    assert "contender large: CUDA out of memory" in capfd.readouterr().err
