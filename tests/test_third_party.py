"""Other people's plugins: the example distribution as pip installs it, and broken ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_tdpo

import tdpo

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tdpo-hinge"


def beside(folder, **more):
    """The environment in which ``folder`` is on the import path, with whatever was there before."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, **more}


def python(*args, cwd, env=None):
    result = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder that holds the example and nothing else, installed as a user would."""
    folder = tmp_path_factory.mktemp("third-party")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, EXAMPLE, cwd=folder)
    return folder


def fake_plugin(folder, distribution, objective, source=None):
    """What an installed plugin leaves on the path: a module and the metadata that registers it."""
    module = distribution.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tdpo]\n{objective} = {module}\n")
    default = f"""
        from tdpo import hookimpl

        @hookimpl
        def tdpo_objectives():
            return {{"{objective}": "{module}:Missing"}}
    """
    text = (source or default).replace("\n        ", "\n")
    (folder / f"{module}.py").write_text(text)
    return folder


@pytest.mark.slow
def test_an_installed_plugin_is_listed_with_its_distribution(installed, tmp_path):
    rows = json.loads(run_tdpo("plugins", "list", "--json", cwd=tmp_path, env=beside(installed)).stdout)
    hinge = next(row for row in rows if row["name"] == "target_hinge")
    assert hinge["distribution"] == "tdpo-hinge 0.1.0"
    assert hinge["paper"] == "arXiv 2309.06657"

    table = run_tdpo("plugins", "list", cwd=tmp_path, env=beside(installed)).stdout
    assert re.search(r"^target_hinge .*tdpo-hinge 0\.1\.0 *$", table, re.MULTILINE)


@pytest.mark.slow
def test_describe_shows_its_options(installed, tmp_path):
    text = run_tdpo("plugins", "describe", "target_hinge", cwd=tmp_path, env=beside(installed)).stdout
    assert "max(0, target - beta*D)" in text
    assert re.search(r"beta .*\[default 0\.1; > 0\]", text)
    assert re.search(r"target .*\[default 1\.0; > 0\]", text)


@pytest.mark.slow
def test_nothing_but_the_plugin_is_installed_and_loading_it_imports_no_torch(installed, tmp_path):
    assert sorted(path.name for path in installed.iterdir()) == ["tdpo_hinge", "tdpo_hinge-0.1.0.dist-info"]
    loaded = python(
        "-c",
        "import sys; from tdpo.core.registry import objectives; assert 'target_hinge' in objectives();"
        "print('torch' in sys.modules)",
        cwd=tmp_path,
        env=beside(installed),
    )
    assert loaded.strip() == "False"


@pytest.mark.slow
def test_fit_trains_with_it_and_logs_the_losses_of_a_hinge(installed, cache, tmp_path):
    run_tdpo(
        *("fit", "--plugin", "target_hinge", "--cache", cache, "--output", "run", "--set", "target=1"),
        *("--learning-rate", "1e-3", "--batch-size", "8", "--logging-steps", "1"),
        cwd=tmp_path,
        env=beside(installed),
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if "rewards/margins" in event]
    assert len(events) == 6
    # At the start the policy is the reference, and every margin is zero.
    assert events[0]["loss"] == pytest.approx(1, abs=1e-4)
    # So short a run leaves every pair before the knee, where the hinge is a straight line.
    assert [event["loss"] for event in events] == pytest.approx(
        [1 - event["rewards/margins"] for event in events], abs=1e-5
    )
    assert events[-1]["loss"] < 0.99
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_hyperparameter_out_of_range_is_refused_in_one_line(installed, cache, tmp_path):
    result = run_tdpo(
        *("fit", "--plugin", "target_hinge", "--cache", cache, "--output", "run", "--set", "target=-1"),
        cwd=tmp_path,
        env=beside(installed),
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "target=-1.0 is out of range: it must be > 0" in result.stderr


@pytest.mark.slow
def test_plugins_off_hides_it_and_the_fit_names_what_there_is(installed, cache, tmp_path):
    off = beside(installed, TDPO_PLUGINS="off")
    assert "target_hinge" not in run_tdpo("plugins", "list", cwd=tmp_path, env=off).stdout
    result = run_tdpo("fit", "--plugin", "target_hinge", "--cache", cache, cwd=tmp_path, env=off, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "no plugin provides the objective 'target_hinge'" in result.stderr
    assert "tdpo2" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_list_of_distributions_lets_those_in_only(installed, tmp_path):
    for setting, shown in (("tdpo-hinge", True), ("something-else", False)):
        environment = beside(installed, TDPO_PLUGINS=setting)
        rows = json.loads(run_tdpo("plugins", "list", "--json", cwd=tmp_path, env=environment).stdout)
        names = {row["name"] for row in rows}
        assert "dpo" in names
        assert ("target_hinge" in names) is shown


@pytest.mark.slow
def test_the_examples_own_tests_pass(installed):
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLE, cwd=EXAMPLE, env=beside(installed))


def test_a_plugin_that_raises_on_import_is_one_line_that_names_its_distribution(tmp_path):
    source = "raise RuntimeError('compiled for another\\nPython')\n"
    folder = fake_plugin(tmp_path / "site", "bad-news", "bad", source)
    result = run_tdpo("plugins", "list", cwd=tmp_path, env=beside(folder), check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "'bad' of bad-news 1.0 fails to load: RuntimeError: compiled for another Python" in result.stderr
    assert "TDPO_PLUGINS=off" in result.stderr

    off = run_tdpo("plugins", "list", cwd=tmp_path, env=beside(folder, TDPO_PLUGINS="off"))
    assert "tdpo2" in off.stdout


def test_an_unknown_hook_is_one_line_that_names_the_distribution(tmp_path):
    source = """
        from tdpo import hookimpl

        @hookimpl
        def tdpo_objektives():
            return {}
    """
    folder = fake_plugin(tmp_path / "site", "typing-slip", "slip", source)
    result = run_tdpo("plugins", "list", cwd=tmp_path, env=beside(folder), check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "typing-slip 1.0" in result.stderr
    assert "tdpo_objektives" in result.stderr


def test_a_target_that_does_not_exist_is_found_when_it_is_named(tmp_path):
    folder = fake_plugin(tmp_path / "site", "half-there", "half")
    result = run_tdpo("plugins", "describe", "half", cwd=tmp_path, env=beside(folder), check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "'half' of half-there 1.0 does not load from 'half_there:Missing'" in result.stderr
    # Those that do load are described all the same.
    assert "beta" in run_tdpo("plugins", "describe", "dpo", cwd=tmp_path, env=beside(folder)).stdout


@pytest.mark.parametrize("other", ["dpo", "twice"])
def test_one_name_from_two_distributions_is_an_error_that_names_both(tmp_path, other):
    """Also where one of the two is tdpo itself: no plugin takes the place of a built-in unseen."""
    site = tmp_path / "site"
    fake_plugin(site, "first-comer", other)
    if other != "dpo":
        fake_plugin(site, "second-comer", other)
    result = run_tdpo("plugins", "list", cwd=tmp_path, env=beside(site), check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"{other!r} is given by both" in result.stderr
    assert "first-comer 1.0" in result.stderr
    assert ("second-comer 1.0" if other != "dpo" else f"tdpo {tdpo.__version__}") in result.stderr
