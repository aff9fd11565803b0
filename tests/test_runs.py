"""``tdpo runs``: what was trained, how far it came, and with what figures."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

import tdpo
from tdpo.cache.manifest import identity_hash
from tdpo.core.cli import tdpo as command_line
from tdpo.core.cli.runs import _show_table
from tdpo.core.errors import ConfigError


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """``tdpo2`` with evaluations, and ``group/plain`` without. Treat as read-only."""
    folder = tmp_path_factory.mktemp("listed") / "runs"
    options = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 2, "quiet": True}
    tdpo.fit(
        "tdpo2", cache, output=str(folder / "tdpo2"), eval_cache=[str(cache)], eval_steps=2, best="eval_loss",
        set={"beta": 0.1, "alpha": 0.7}, **options,
    )  # fmt: skip
    tdpo.fit(["dpo", "sft=0.5"], cache, output=str(folder / "group" / "plain"), **options)
    return folder


@pytest.fixture
def mine(runs, tmp_path):
    """A copy, to change."""
    return shutil.copytree(runs, tmp_path / "runs")


def called(*arguments):
    result = CliRunner().invoke(command_line, ["runs", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_runs_are_found_in_folders_of_folders(runs, cache):
    plain, evaluated = tdpo.list_runs(runs)
    assert (plain.name, evaluated.name) == ("group/plain", "tdpo2")
    assert (plain.objective, plain.options) == ("dpo+sft", {})
    # beta=0.1 was given too, but is the default.
    assert (evaluated.objective, evaluated.options) == ("tdpo2", {"alpha": 0.7})
    assert plain.cache == evaluated.cache == identity_hash(tdpo.open_cache(cache).identity)
    for run in (plain, evaluated):
        assert (run.state, run.step, run.steps, run.checkpoints) == ("finished", 4, 4, (2, 4))
        assert run.trouble is None
        files = [path for path in (runs / run.name).rglob("*") if path.is_file()]
        assert run.bytes == sum(path.stat().st_size for path in files)
        assert run.made.startswith("20")
    assert [one.name for one in tdpo.list_runs(runs / "tdpo2")] == ["tdpo2"]
    assert [one.name for one in tdpo.list_runs(runs, depth=1)] == ["tdpo2"]


def test_figures_are_the_last_and_the_best(runs):
    events = [json.loads(line) for line in (runs / "tdpo2" / "metrics.jsonl").read_text().splitlines()]
    run = tdpo.list_runs(runs)[1]
    losses = {event["step"]: event["loss"] for event in events if "loss" in event}
    assert run.figures["loss"] == losses[4]
    lowest = min(losses, key=losses.get)
    assert (run.best["loss"].step, run.best["loss"].value) == (lowest, losses[lowest])
    accuracies = [event["eval_rewards/accuracies"] for event in events if "eval_loss" in event]
    assert run.best["eval_rewards/accuracies"].value == max(accuracies)
    assert "entropy" not in run.best  # neither way is better


def test_evaluations_are_those_of_the_policy_that_was_kept(mine):
    """Here the record says that an earlier step was the best."""
    path = mine / "tdpo2" / "run.json"
    record = json.loads(path.read_text())
    record["provenance"]["finished"]["best_step"] = 2
    path.write_text(json.dumps(record))
    events = [json.loads(line) for line in (mine / "tdpo2" / "metrics.jsonl").read_text().splitlines()]
    at_two = next(event for event in events if event["step"] == 2 and "eval_loss" in event)
    assert tdpo.list_runs(mine)[1].figures["eval_loss"] == at_two["eval_loss"]


def test_runs_that_stopped_and_metrics_that_were_cut_are_told(mine):
    run = mine / "tdpo2"
    for name in ("model.safetensors", "config.json"):
        (run / name).unlink()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:3]) + lines[3][:20])
    found = tdpo.list_runs(mine)[1]
    # The checkpoints know more than the cut file.
    assert (found.state, found.step, found.steps) == ("unfinished", 4, 4)
    shutil.rmtree(run / "checkpoint-4")
    assert tdpo.list_runs(mine)[1].step == 2
    shown = called(mine)
    assert "tdpo2: tdpo2 alpha=0.7, unfinished, step 2 of 4" in shown
    assert "metrics.jsonl is cut short: its last line, 4, is no whole JSON object" in shown
    metrics.unlink()
    assert "metrics.jsonl is not there" in called(mine)


def test_a_run_that_goes_on_again_is_not_called_finished(mine):
    path = mine / "tdpo2" / "run.json"
    record = json.loads(path.read_text())
    record["provenance"]["finished"] = None
    path.write_text(json.dumps(record))
    assert tdpo.list_runs(mine)[1].state == "unfinished"


def test_one_that_cannot_be_read_does_not_hide_the_others(mine):
    (mine / "group" / "plain" / "tdpo.yaml").write_text("fit: {plugin: dpo, bogus: 1}")
    (mine / "empty").mkdir()
    (mine / "again").symlink_to(mine)
    broken, whole = tdpo.list_runs(mine)
    assert (broken.state, whole.state) == ("unreadable", "finished")
    assert "bogus is not an option" in broken.trouble
    assert "group/plain: unreadable" in called(mine)


def test_a_folder_with_options_but_no_run_is_none(tmp_path, runs):
    (tmp_path / "tdpo.yaml").write_text("fit: {plugin: dpo}")
    with pytest.raises(ConfigError, match="holds no run of tdpo fit"):
        tdpo.list_runs(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        tdpo.list_runs(tmp_path / "none")


def test_the_best_comes_first_and_those_without_the_figure_last(mine):
    shutil.copytree(mine / "tdpo2", mine / "better")
    metrics = mine / "better" / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    for event in events:
        if "eval_loss" in event:
            event["eval_loss"] -= 1
            event["eval_rewards/margins"] += 1
    metrics.write_text("".join(json.dumps(event) + "\n" for event in events))
    for figure in ("eval_loss", "eval_rewards/margins"):
        assert [one.name for one in tdpo.list_runs(mine, sort=figure)] == ["better", "tdpo2", "group/plain"]
    assert [one.name for one in tdpo.list_runs(mine)] == ["better", "group/plain", "tdpo2"]
    made = tdpo.list_runs(mine, sort="made")
    assert [one.made for one in made] == sorted(one.made for one in made)
    sizes = [one.bytes for one in tdpo.list_runs(mine, sort="size")]
    assert sizes == sorted(sizes, reverse=True)


def test_a_figure_that_none_has_gets_the_nearest_name(runs):
    with pytest.raises(ConfigError, match=r"--sort eval_los: .*did you mean 'eval_loss'"):
        tdpo.list_runs(runs, sort="eval_los")
    result = CliRunner().invoke(command_line, ["runs", str(runs), "--metric", "rewards/margin"])
    assert "--metric rewards/margin: none of these runs logged it; did you mean" in str(result.exception)


def test_a_program_gets_everything(runs):
    found = json.loads(called(runs, "--json"))
    assert found == json.loads(json.dumps([one.to_dict() for one in tdpo.list_runs(runs)]))


@pytest.mark.parametrize("metrics", [(), ("kl/margin", "eval_rewards/accuracies")])
def test_people_get_a_table_of_100_columns(runs, monkeypatch, capsys, metrics):
    monkeypatch.setenv("COLUMNS", "100")
    _show_table(tdpo.list_runs(runs), metrics)
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 100
    text = " ".join(" ".join(shown).split())
    for part in ("group/plain", "tdpo2 alpha=0.7", "finished, 4 steps", "2 checkpoints"):
        assert part in text
    assert ("accuracy" in text) == (not metrics)


def test_listing_imports_no_torch(runs):
    code = f"import sys, tdpo; tdpo.list_runs({str(runs)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
