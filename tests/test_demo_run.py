"""The demonstration from its first line to its picture."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tdpo.core.demo import picture
from tdpo.core.demo.prepare import prepare
from tdpo.core.demo.results import checkpoints, table
from tdpo.core.demo.run import COMMANDS, run_demo
from tdpo.core.errors import ConfigError


def _point(kl: float, reward: float, **more: float) -> dict:
    return {
        "reward": {"mean": reward, "error": 0.01},
        "forward_kl": {"mean": kl, "error": 0.1},
        "reverse_kl": {"mean": kl, "error": 0.1},
        "tokens": 20.0,
        "samples": 512,
        **more,
    }


@pytest.fixture
def results():
    runs = {"dpo": 8.0, "tdpo1": 12.0, "tdpo2": 2.0}
    return {
        "seed": 0,
        "reference": _point(0, 0.0),
        "policies": {
            name: [_point(kl * t, 0.4 * t, step=100 * t) for t in (0.5, 0.75)] + [_point(kl, 0.4, step=100)]
            for name, kl in runs.items()
        },
        "curves": {
            name: {
                "step": [0, 50, 100],
                "chosen": [0, kl / 2, kl],
                "rejected": [0, kl / 2 + 0.2, kl + 0.3],
            }
            for name, kl in runs.items()
        },
    }


def test_picture_is_a_png_of_a_page_width(results, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "results.png"
    picture.draw(results, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert 1200 < width < 3000
    assert 500 < height < 1500
    assert len(content) > 20_000


def test_picture_takes_runs_that_logged_no_kl(results, tmp_path):
    pytest.importorskip("matplotlib")
    results["curves"]["dpo"] = picture.kl_curves([{"step": 1, "loss": 0.7}])
    picture.draw(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 20_000


def test_curves_are_those_on_held_out_pairs_where_there_are_any():
    training = [{"step": s, "kl/chosen": 1.0 * s, "kl/rejected": 2.0 * s} for s in (1, 2)]
    evaluation = [{"step": s, "eval_kl/chosen": 0.1, "eval_kl/rejected": 0.2} for s in (2, 0)]
    assert picture.kl_curves(training) == {"step": [1, 2], "chosen": [1, 2], "rejected": [2, 4]}
    assert picture.kl_curves([*training, *evaluation]) == {
        "step": [0, 2],
        "chosen": [0.1, 0.1],
        "rejected": [0.2, 0.2],
    }


def test_table_shows_the_finished_policies(results):
    results["policies"]["tdpo2"][-1]["heldout_accuracy"] = 0.7512
    text = table(results)
    assert re.search(r"tdpo2 .*\+0\.40 ± 0\.02 .* 2\.00 ± 0\.20 .*75\.1%", text)
    assert all(name in text for name in ("reference", "dpo", "tdpo1"))


def test_checkpoints_come_in_order_and_the_finished_policy_once(tmp_path):
    for step in (100, 20, 60):
        (tmp_path / f"checkpoint-{step}").mkdir()
    found = checkpoints(tmp_path, [{"step": 20}, {"step": 100}])
    assert [(step, place.name) for step, place in found] == [
        (20, "checkpoint-20"),
        (60, "checkpoint-60"),
        (100, tmp_path.name),
    ]


def test_missing_matplotlib_is_said_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tdpo\[demo\]'"):
        run_demo(tmp_path / "demo", size="tiny")
    assert not (tmp_path / "demo").exists()


def test_module_imports_no_torch():
    code = "import sys, tdpo.core.demo.run; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_foreign_folder_is_one_line_and_status_2(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [sys.executable, "-m", "tdpo", "demo", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "choose another folder" in done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny demonstration before its first command. Copy it before writing to it."""
    folder = tmp_path_factory.mktemp("run") / "demo"
    prepare(folder, size="tiny", echo=lambda line: None, quiet=True)
    return folder


def test_prepare_only_says_what_to_type(prepared):
    said: list[str] = []
    run_demo(prepared, prepare_only=True, size="tiny", echo=said.append)
    assert [line.removeprefix("  tdpo ") for line in said if line.startswith("  tdpo ")] == list(COMMANDS)
    assert not (prepared / "tdpo-cache").exists()


@pytest.mark.slow
def test_whole_demonstration(tmp_path, capfd):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "demo"
    run_demo(folder, size="tiny")
    said = capfd.readouterr().out
    # Each command is announced, in order, as the user would type it.
    assert re.findall(r"^\$ tdpo (.*)$", said, re.MULTILINE) == list(COMMANDS)
    results = json.loads((folder / "results.json").read_text())
    assert results["reference"]["forward_kl"]["mean"] == 0
    for name in ("dpo", "tdpo1", "tdpo2"):
        assert results["policies"][name][-1]["forward_kl"]["mean"] > 0
        assert len(results["policies"][name]) > 1
        assert results["curves"][name]["step"][0] == 0
    assert (folder / "results.png").stat().st_size > 20_000
    run_demo(folder, size="tiny")
    said = capfd.readouterr().out
    assert "used again" in said
    assert "start over" in said
    # The same seed, the same numbers.
    assert json.loads((folder / "results.json").read_text()) == results


def test_failing_command_stops_with_its_status(prepared, tmp_path):
    pytest.importorskip("matplotlib")
    folder = shutil.copytree(prepared, tmp_path / "demo")
    (folder / "data" / "train.jsonl").write_text("not JSON\n")
    with pytest.raises(SystemExit) as stop:
        run_demo(folder, size="tiny", echo=lambda line: None)
    assert stop.value.code == 2
