"""Mistakes: one line on stderr that says what, where and what to do; exit code 2; nothing half-written."""

import json
import shutil

import pytest
from support import make_model, make_tokenizer, write_pairs

from tdpo.core.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch, reference, pairs, cache):
    """A working folder with everything in order: model, pairs.jsonl, tdpo-cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(reference)
    shutil.copy(pairs, tmp_path / "pairs.jsonl")
    shutil.copytree(cache, tmp_path / "tdpo-cache")
    return tmp_path


@pytest.fixture
def refuse(folder, capsys):
    """Run a command that must be refused, and return the line it says."""

    def run(*arguments):
        before = sorted(folder.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert stopped.value.code == 2, captured.err
        lines = [line for line in captured.err.splitlines() if not line.startswith("tokenising:")]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("tdpo: ")
        assert "Traceback" not in captured.err
        assert sorted(folder.rglob("*")) == before, "something was left behind"
        return lines[0]

    return run


def build(*extra, dataset="pairs.jsonl", ref="model", out="new"):
    return ["cache", "build", "--ref", ref, "--dataset", dataset, "--out", out, *extra]


def fit(*extra, plugin="tdpo2"):
    return ["fit", "--plugin", plugin, *extra]


def test_no_such_data_file(refuse):
    assert "parse.jsonl" in refuse(*build(dataset="parse.jsonl"))


def test_a_file_that_is_not_what_its_name_says(refuse, folder):
    (folder / "a.parquet").write_text('{"prompt": "x"}\n')
    assert "a.parquet" in refuse(*build(dataset="a.parquet"))
    (folder / "b.jsonl").write_bytes(b"\x80\x04\x95 not text at all \xff")
    assert "b.jsonl" in refuse(*build(dataset="b.jsonl"))
    good = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "c.jsonl").write_text("\n".join([*good[:3], '{"prompt": ', *good[3:]]))
    line = refuse(*build(dataset="c.jsonl"))
    assert "c.jsonl" in line
    assert "line 4" in line


def test_no_usable_column(refuse, folder):
    (folder / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    line = refuse(*build(dataset="a.jsonl"))
    assert "question" in line
    assert "chosen" in line
    assert "--column-map" in line


def test_a_model_folder_without_a_model(refuse, folder):
    (folder / "empty").mkdir()
    assert "config.json" in refuse(*build(ref="empty"))
    shutil.copy(folder / "model" / "config.json", folder / "empty")
    assert "weights" in refuse(*build(ref="empty"))
    assert "no such folder" in refuse(*build(ref="modle"))
    assert "--model empty" in refuse(*fit("--model", "empty"))


def test_a_model_without_a_tokenizer(refuse, folder):
    make_model(50).save_pretrained(folder / "bare")
    assert "tokenizer" in refuse(*build(ref="bare"))


def test_an_unknown_plugin_offers_the_nearest_names(refuse):
    assert "did you mean 'tdpo2'" in refuse(*fit(plugin="tdpo3"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("alhpa=1", "did you mean 'alpha'"),
        ("alpha=-1", "must be >= 0"),
        ("beta=0", "must be > 0"),
        ("beta=nan", "must be > 0"),
        ("beta=strong", "expected a number"),
        ("beta", "NAME=VALUE"),
        ("reward_form=cod", "did you mean 'code'"),
        ("training.weight_decya=1", "did you mean 'weight_decay'"),
        ("training.weight_decay=much", "expected a number"),
    ],
)
def test_an_unknown_or_out_of_range_hyperparameter(refuse, setting, said):
    assert said in refuse(*fit("--set", setting))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning-rate", "0"], "learning_rate=0.0"),
        (["--epochs", "many"], "expected a number"),
        (["--batch-size", "1.5"], "expected a whole number"),
        (["--kl-estimator", "fited"], "did you mean 'fitted'"),
        (["--schedule", "sometimes"], "sometimes"),
        (["--optimizer", "adamm"], "adamm"),
        (["--learning-rte", "1"], "--learning-rate"),
    ],
)
def test_an_option_that_cannot_be(refuse, flags, said):
    assert said in refuse(*fit(*flags))


def test_an_unknown_command(refuse):
    assert "did you mean 'fit'" in refuse("fitt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fit: {learning_rte: 1}", "did you mean 'learning_rate'"),
        ("fot: {}", "did you mean 'fit'"),
        ("fit: [1, 2]", "must hold names"),
        ("fit: {set: {alpah: 1}}", "did you mean 'alpha'"),
        ("training: {weight_decya: 1}", "did you mean 'weight_decay'"),
        ("fit: {epochs: -1}", "must be > 0"),
        ("fit: {", "line 1"),
        ("- a", "sections"),
    ],
)
def test_a_mistake_in_the_configuration_file(refuse, folder, text, said):
    (folder / "tdpo.yaml").write_text(text)
    assert said in refuse(*fit())


def test_a_cache_without_what_the_objective_needs(refuse, folder):
    with pytest.raises(SystemExit) as done:
        main(build("--head", "0", "--tail", "0", out="plain"))
    assert done.value.code == 0
    line = refuse(*fit("--cache", "plain"))
    assert "--cache plain" in line
    assert "tdpo cache build" in line
    with pytest.raises(SystemExit) as done:
        main(fit("--cache", "plain", "--max-steps", "1", plugin="dpo"))
    assert done.value.code == 0


def test_a_policy_with_another_tokenizer_or_vocabulary(refuse, folder):
    other = make_tokenizer(extra=["<more>"])
    make_model(len(other)).save_pretrained(folder / "other")
    other.save_pretrained(folder / "other")
    line = refuse(*fit("--model", "other"))
    assert "--model other" in line
    assert "'<more>'" in line
    tokenizer = make_tokenizer()
    make_model(len(tokenizer) + 8).save_pretrained(folder / "padded")
    tokenizer.save_pretrained(folder / "padded")
    assert f"{len(tokenizer) + 8} logits" in refuse(*fit("--model", "padded"))


def test_an_output_folder_that_holds_another_run_or_something_else(refuse, folder):
    with pytest.raises(SystemExit):
        main(fit("--output", "mine", "--max-steps", "1"))
    line = refuse(*fit("--output", "mine"))
    assert "--overwrite" in line
    assert "--resume" in line
    assert "holds no run" in refuse(*fit("--output", "model", "--overwrite"))
    assert "is a file" in refuse(*fit("--output", "pairs.jsonl"))
    with pytest.raises(SystemExit) as done:
        main(fit("--output", "mine", "--max-steps", "1", "--overwrite"))
    assert done.value.code == 0


def test_a_cache_folder_that_is_not_one_or_whose_manifest_is_cut_short(refuse, folder):
    assert "nowhere" in refuse(*fit("--cache", "nowhere"))
    assert "--eval-cache: no cache at nowhere" in refuse(*fit("--eval-cache", "nowhere"))
    assert "model" in refuse(*fit("--cache", "model"))
    manifest = folder / "tdpo-cache" / "manifest.json"
    text = manifest.read_text()
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        manifest.write_text(text[:cut])
        assert "manifest.json" in refuse(*fit())
    manifest.write_text(text)
    (folder / "tdpo-cache" / "pairs-00001.parquet").unlink()
    assert "pairs-00001.parquet" in refuse(*fit())


def test_a_folder_with_other_things_in_it_becomes_no_cache(refuse, folder):
    assert "not a cache" in refuse(*build(out="model"))


def test_a_cache_of_another_reference_to_evaluate_on(refuse, folder):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=4).save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    with pytest.raises(SystemExit):
        main(build(ref="other"))
    assert "reference" in refuse(*fit("--eval-cache", "new"))


def test_too_many_unusable_rows_stop_the_build_before_the_model_loads(refuse, folder, monkeypatch):
    monkeypatch.setattr(
        "tdpo.core.caching.reference.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    write_pairs(folder / "half.jsonl", 4)
    with (folder / "half.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a", "chosen": None, "rejected": "b"}) + "\n")
    line = refuse(*build(dataset="half.jsonl"))
    assert "missing chosen" in line
    assert "--max-skipped" in line


def test_missing_options_say_where_they_can_be_given(refuse):
    assert "--ref" in refuse("cache", "build", "--dataset", "pairs.jsonl")
    assert "--plugin" in refuse("fit")
