"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest
from support import run_tdpo

import tdpo

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "numpy", "rich", "yaml")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fit", "--help"], ["cache", "build", "--help"], ["plugins", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from tdpo.core.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert result.stdout


def test_importing_tdpo_and_loading_plugins_imports_no_torch():
    script = (
        "import tdpo, sys; from tdpo.core.registry import objectives; objectives(); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_public_name_is_there():
    for name in tdpo.__all__:
        assert getattr(tdpo, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = tdpo.nothing_here


def test_plugins_list_and_describe():
    listed = json.loads(run_tdpo("plugins", "list", "--json").stdout)
    assert {"dpo", "tdpo1", "tdpo2"} <= {row["name"] for row in listed}
    table = run_tdpo("plugins", "list").stdout
    assert "arXiv 2404.11999" in table
    text = run_tdpo("plugins", "describe", "tdpo2").stdout
    for part in ("alpha", "default 0.5", ">= 0", "forward_kl", "arXiv 2404.11999", "stop_gradient"):
        assert part in text
    described = json.loads(run_tdpo("plugins", "describe", "dpo", "--json").stdout)
    assert {option["name"] for option in described["options"]} == {
        "beta",
        "label_smoothing",
        "reference_free",
    }


def test_the_cards_two_commands_run_in_a_folder_with_a_tdpo_yaml(tmp_path, reference, pairs):
    (tmp_path / "model").symlink_to(reference)
    (tmp_path / "tdpo.yaml").write_text(
        f"build:\n  dataset: {pairs}\n  head: 4\n"
        "fit:\n  epochs: 3\n  max_steps: 2\n  learning_rate: 1e-4\n  set: {beta: 0.2, alpha: 0.1}\n"
        "training:\n  weight_decay: 0.1\n"
    )
    printed = run_tdpo("cache", "build", "--ref", "model", cwd=tmp_path)
    assert "48 pairs" in printed.stdout
    assert tdpo.open_cache(tmp_path / "tdpo-cache").head == 4
    run_tdpo("fit", "--plugin", "tdpo2", "--set", "alpha=0.7", "--max-steps", "3", cwd=tmp_path)
    assert (tmp_path / "runs" / "tdpo2" / "model.safetensors").exists()
    import yaml

    resolved = yaml.safe_load((tmp_path / "runs" / "tdpo2" / "tdpo.yaml").read_text())
    # A flag wins over --set's neighbours in the file, which win over the defaults.
    assert resolved["fit"]["set"] == {"beta": 0.2, "alpha": "0.7"}
    assert resolved["fit"]["max_steps"] == 3
    assert resolved["fit"]["learning_rate"] == 1e-4
    assert resolved["training"] == {"weight_decay": 0.1}
    assert yaml.safe_load((tmp_path / "tdpo-cache" / "tdpo.yaml").read_text())["build"]["head"] == 4


def test_the_resolved_configuration_runs_again(tmp_path, cache):
    run_tdpo("fit", "--plugin", "dpo", "--cache", cache, "--output", tmp_path / "a", "--max-steps", "1")
    run_tdpo("fit", "--config", tmp_path / "a" / "tdpo.yaml", "--output", tmp_path / "b")
    a, b = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "ab")
    assert len(a) == len(b)


def test_cache_info(cache):
    text = run_tdpo("cache", "info", cache).stdout
    assert "48 pairs" in text
    assert "bytes per completion token" in text
    assert json.loads(run_tdpo("cache", "info", cache, "--json").stdout)["complete"] is True


def test_progress_without_a_terminal_is_plain_lines(tmp_path, reference, pairs):
    printed = run_tdpo("cache", "build", "--ref", reference, "--dataset", pairs, "--out", tmp_path / "c")
    assert "scoring: " in printed.stderr
    assert "tokens/s" in printed.stderr
    assert "\x1b" not in printed.stderr
    assert "\r" not in printed.stderr


def test_help_keeps_the_examples_on_their_own_lines():
    text = run_tdpo("--help").stdout
    assert "\\b" not in text
    assert "\n    tdpo fit --plugin tdpo2  " in text
