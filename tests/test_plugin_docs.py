"""The pages of docs/plugins: their code and commands run, their tables are what the code says."""

import importlib
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import plugin_pages
import pytest
from click.testing import CliRunner
from doc_blocks import blocks_of

import tdpo
from tdpo.core.cli import tdpo as command
from tdpo.core.hookspecs import API_VERSION
from tdpo.core.objective import STATISTICS
from tdpo.core.registry import plugin_manager
from tdpo.testing import check_objective

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "plugins"
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))


def write_files(blocks, folder):
    """The blocks as the files that they say they are; what is shown of one file in pieces is joined."""
    for block in blocks:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(block.text)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package of the pages, as an installation would leave it: on the path, with its entry point."""
    site = tmp_path / "site"
    blocks = [*blocks_of(PAGES / "hooks.md"), *blocks_of(PAGES / "index.md")]
    write_files(blocks, site)
    project = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entries = [f"{name} = {place}" for name, place in project["entry-points"]["tdpo"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[tdpo]", *entries]) + "\n")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    plugin_manager.cache_clear()
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()
    plugin_manager.cache_clear()


def test_every_hook_has_an_example_whose_commands_run(package, cache, tmp_path, monkeypatch):
    shutil.copytree(cache, tmp_path / "tdpo-cache")
    (tmp_path / "tdpo.yaml").write_text("fit: {max_steps: 1}\n")
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(PAGES / "hooks.md")
    said = {}
    for line in [line for block in blocks if block.language == "bash" for line in block.commands]:
        name, *words = shlex.split(line)
        assert name == "tdpo"
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, (line, result.output, result.exception)
        said[line] = result.output
    hooks = {"tdpo_objectives", "tdpo_weightings", "tdpo_statistics", "tdpo_commands"}
    assert {each for block in blocks for each in re.findall(r"^def (tdpo_\w+)", block.text, re.M)} == hooks
    assert "(D - target)^2" in said["tdpo plugins describe squared"]
    assert re.search(r"prefers one|the reference prefers .* of 48 pairs", said["tdpo prefers tdpo-cache"])
    assert re.search(r"prefers +from my-package 1\.0", said["tdpo --help"])
    assert "surprisal" in said["tdpo cache info tdpo-cache"]


def test_what_the_pages_build_keeps_to_the_contract(package):
    names = {"__name__": "page"}
    exec((package / "tests" / "test_my_package.py").read_text(), names)
    names["test_they_keep_to_the_contract"]()
    check_objective(importlib.import_module("my_package.weighted").Weighted)
    check_objective(importlib.import_module("my_package.baseline").Baseline)
    check_objective(importlib.import_module("my_package.thinned").Thinned)


def test_what_runs_on_and_what_draws_is_trained_with(package, cache, tmp_path):
    """Both through the hook, and with the pages' own names for them."""
    with (package / "my_package" / "plugin.py").open("a") as file:
        file.write(
            "\n\n@hookimpl\ndef tdpo_objectives():\n"
            "    return {name: f'my_package.{name}:{name.title()}' for name in ('baseline', 'thinned')}\n"
        )
    plugin_manager.cache_clear()
    options = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "quiet": True}
    for name in ("baseline", "thinned"):
        tdpo.fit(name, cache, output=str(tmp_path / name), **options)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [event["loss"] for event in map(json.loads, lines) if "loss" in event]
        # The policy begins as the reference, whatever is drawn of its tokens or measured from their mean.
        assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
        assert np.isfinite(losses).all()
        assert losses[-1] != pytest.approx(losses[0], abs=1e-5)


def test_the_statistics_of_the_pages_are_what_they_say(package, cache, reference, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    mine = shutil.copytree(cache, tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(reference).double().eval()
    pairs = [record.pair for record in tdpo.open_cache(mine)][:5]
    endings = tdpo.add_statistics(mine, "ending", statistic="ending", set={"last": 4}, quiet=True).read(pairs)
    bits = tdpo.add_statistics(mine, "bits", statistic="surprisal", quiet=True).read(pairs)
    for at, pair in enumerate(pairs):
        for side in ("chosen", "rejected"):
            prompt, ids = pair.prompt_ids.astype(int).tolist(), pair.ids(side).astype(int).tolist()
            with torch.no_grad():
                output = model(torch.tensor([[*prompt, *ids]]), output_hidden_states=True)
            log_p = output.logits[0, len(prompt) - 1 : -1].log_softmax(-1).numpy()
            np.testing.assert_allclose(
                bits[f"{side}_surprisal"][at], -log_p[np.arange(len(ids)), ids], atol=2e-5
            )
            states = output.hidden_states[-1][0].numpy()
            want = states[-min(4, len(ids)) :].mean(0)
            np.testing.assert_allclose(endings[f"{side}_ending"][at], want, atol=1e-5)


@pytest.mark.parametrize("page", plugin_pages.TABLES)
def test_a_table_is_what_the_code_says(page):
    """If this fails: python tests/plugin_pages.py writes it again."""
    assert (PAGES / page).read_text(encoding="utf-8") == plugin_pages.page(page)


def test_the_page_of_what_is_public_names_the_version_and_all_of_it():
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    public = text.partition("## What is public")[2]
    assert f"The plugin API is version **{API_VERSION}**" in public
    import tdpo.testing

    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", public, re.MULTILINE))))
    assert named - {"tdpo", "testing"} == {*tdpo.__all__, *tdpo.testing.__all__}


def test_the_contract_names_every_statistic_that_can_be_needed():
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)`", text.partition("What it returns")[0], re.MULTILINE))
    assert set(STATISTICS) <= named
    # Whatever else a field of the contract is called, the page speaks of it.
    for cls in (tdpo.Objective, tdpo.PairLoss):
        for name in cls.__annotations__:
            assert f"`{name}" in text, name


def test_the_directory_names_every_example_with_what_it_gives():
    text = (PAGES / "directory.md").read_text(encoding="utf-8")
    rows = {
        line.split("]")[0].removeprefix("| ["): line for line in text.splitlines() if line.startswith("| [")
    }
    assert set(rows) == {folder.name for folder in EXAMPLES}
    for folder in EXAMPLES:
        assert f"(../../examples/{folder.name})" in rows[folder.name]
        (plugin,) = folder.glob("src/*/plugin.py")
        for name in re.findall(r'"(\w+)": "\w+\.', plugin.read_text()):
            assert re.search(rf"`(tdpo )?{name}`", rows[folder.name]), name


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_examples_and_the_template_follow_the_naming_of_the_directory(folder):
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"].startswith("tdpo-")
    assert "tdpo-plugin" in project["keywords"]
    template = ROOT / "core" / "scaffold" / "template" / "pyproject.toml.j2"
    assert 'keywords = ["tdpo-plugin"]' in template.read_text()
