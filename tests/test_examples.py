"""The example distributions, and one that `tdpo plugins new` writes: installed as pip does, tested, used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_tdpo

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OTHERS = ("tdpo-novelty", "tdpo-open-tokens", "tdpo-lengths")

pytestmark = pytest.mark.slow


def python(*args, cwd, path=""):
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **beside(path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def beside(folder):
    """The environment in which ``folder`` is on the import path, with whatever was there before."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def install(source, folder):
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, source, cwd=folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the examples and nothing else."""
    folder = tmp_path_factory.mktemp("examples")
    for name in OTHERS:
        install(EXAMPLES / name, folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Source and installation of what `tdpo plugins new my-loss` writes."""
    folder = tmp_path_factory.mktemp("written")
    said = run_tdpo("plugins", "new", "my-loss", cwd=folder).stdout
    assert "pip install tdpo-my-loss" in said
    place = folder / "site"
    place.mkdir()
    install(folder / "tdpo-my-loss", place)
    return folder / "tdpo-my-loss", place


@pytest.mark.parametrize("name", OTHERS)
def test_an_example_passes_its_own_tests(name, installed, tmp_path):
    tests = shutil.copytree(EXAMPLES / name / "tests", tmp_path / "tests")
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=tmp_path, path=installed)


def test_a_statistic_of_an_example_is_added_and_trained_with(installed, cache, tmp_path):
    mine = shutil.copytree(cache, tmp_path / "cache")
    env = beside(installed)
    fit = ("fit", "--plugin", "novelty_dpo", "--cache", mine, "--output", "run", "--max-steps", "2")
    result = run_tdpo(*fit, cwd=tmp_path, env=env, check=False)
    assert result.returncode == 2
    assert "--name novelty --statistic novelty" in result.stderr
    run_tdpo(
        *("cache", "add", mine, "--name", "novelty", "--statistic", "novelty"),
        cwd=tmp_path,
        env=env,
    )
    run_tdpo(*fit, cwd=tmp_path, env=env)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_weighting_of_an_example_multiplies_a_built_in_objective(installed, cache, tmp_path):
    words = ("fit", "--plugin", "tdpo2", "--weighting", "open_tokens", "--set", "open_tokens.floor=0.2")
    run_tdpo(
        *words, "--cache", cache, "--output", "run", "--max-steps", "2", cwd=tmp_path, env=beside(installed)
    )
    assert "OpenTokens(floor=0.2)" in (tmp_path / "run" / "README.md").read_text()


def test_a_command_of_an_example_is_one_of_tdpo(installed, cache, tmp_path):
    env = beside(installed)
    assert "from tdpo-lengths 0.1.0" in run_tdpo("--help", cwd=tmp_path, env=env).stdout
    assert "chosen is longer in" in run_tdpo("lengths", cache, cwd=tmp_path, env=env).stdout
    result = run_tdpo("lengths", "nowhere", cwd=tmp_path, env=env, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_a_written_plugin_passes_its_tests_and_trains_at_once(written, cache, tmp_path):
    source, place = written
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=source, path=place)
    env = beside(place)
    rows = json.loads(run_tdpo("plugins", "list", "--json", cwd=tmp_path, env=env).stdout)
    mine = next(row for row in rows if row["name"] == "my_loss")
    assert mine["distribution"] == "tdpo-my-loss 0.1.0"
    words = ("fit", "--plugin", "my_loss", "--set", "target=0.5", "--max-steps", "2")
    run_tdpo(*words, "--cache", cache, "--output", "run", cwd=tmp_path, env=env)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpo", "has an objective 'dpo' already; choose another name"),
        ("3x", "'3x' cannot name an objective"),
        ("class", "'class' cannot name an objective"),
        ("my-loss", "tdpo-my-loss: there is something already"),
    ],
)
def test_a_plugin_that_cannot_be_written_is_refused(name, message, tmp_path):
    (tmp_path / "tdpo-my-loss").mkdir()
    (tmp_path / "tdpo-my-loss" / "mine").write_text("")
    result = run_tdpo("plugins", "new", name, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
