"""A policy goes to a folder, a store or the hub with its card and figures: whole, or not at all."""

import json
import os
import shutil
from functools import partial

import fsspec
import pytest
import torch
from hub_server import hub_client, hub_server
from huggingface_hub import ModelCard

import tdpo
from tdpo.core.cli import main
from tdpo.core.errors import CacheError, ConfigError, TdpoError

ABOUT = {"README.md", "metrics.jsonl", "tdpo.yaml", "run.json"}
MODEL = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A finished run of four steps, sampled and evaluated. Treat as read-only."""
    output = tmp_path_factory.mktemp("pushed") / "dpo"
    tdpo.fit(
        "dpo", cache, output=str(output), max_steps=4, save_steps=2, learning_rate=1e-3, logging_steps=1,
        eval_cache=[f"held={cache}"], samples=2, sample_tokens=4, quiet=True,
    )  # fmt: skip
    tdpo.evaluate(str(output), limit=20, bootstrap=50, quiet=True)
    return output


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to change."""
    return shutil.copytree(finished, tmp_path / "dpo")


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def unfinish(run):
    """Take a run back to before its model was saved."""
    (run / "model.safetensors").unlink()
    (run / "config.json").unlink()


def test_a_folder_gets_a_policy_that_opens_and_nothing_that_is_private(finished, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pushed = tdpo.push_run(finished, tmp_path / "out", quiet=True)
    assert names(tmp_path / "out") == MODEL | ABOUT | {"eval/eval.json"}
    assert pushed.files == {name: (tmp_path / "out" / name).stat().st_size for name in pushed.files}
    assert pushed.left_out.keys() == {"samples.jsonl", "eval/pairs.parquet"}
    assert pushed.commit is None
    mine = AutoModelForCausalLM.from_pretrained(finished).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(value, mine[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert os.listdir(tmp_path) == ["out"]


def test_texts_go_when_they_are_asked_for(finished, tmp_path):
    tdpo.push_run(finished, tmp_path / "out", with_samples=True, quiet=True)
    assert {"samples.jsonl", "eval/pairs.parquet"} <= names(tmp_path / "out")


def test_the_card_tells_what_eval_found(finished, tmp_path):
    tdpo.push_run(finished, tmp_path / "out", quiet=True)
    document = json.loads((finished / "eval" / "eval.json").read_text())
    figures = document["evaluations"][0]["figures"]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert results["held", "accuracy"] == figures["rewards/accuracies"]["value"]
    assert results["held", "sequential_kl_chosen"] == figures["kl/chosen"]["value"]
    assert document["command"] in card.text
    assert f"| rewards/margins | {figures['rewards/margins']['value']:.6g} |" in card.text
    assert "## Evaluated" not in (finished / "README.md").read_text()


def test_an_evaluation_of_another_policy_stays_behind(run, tmp_path):
    tdpo.evaluate(
        str(run), model=str(run / "checkpoint-2"), out=str(run / "eval"), limit=5, bootstrap=0, quiet=True
    )
    pushed = tdpo.push_run(run, tmp_path / "out", quiet=True)
    assert "another policy" in pushed.left_out["eval/eval.json"]
    assert "## Evaluated" not in (tmp_path / "out" / "README.md").read_text()
    # But it goes with the policy that it is of.
    pushed = tdpo.push_run(run, tmp_path / "second", checkpoint=2, quiet=True)
    assert "eval/eval.json" in pushed.files


def test_a_card_that_was_edited_keeps_its_words(run, tmp_path):
    card = run / "README.md"
    card.write_text(card.read_text().replace("# dpo\n", "# dpo\n\nMy own words.\n"))
    tdpo.push_run(run, tmp_path / "out", quiet=True)
    assert "My own words." in (tmp_path / "out" / "README.md").read_text()
    card.write_text("---\nmodel-index: 3\n---\n")
    with pytest.raises(ConfigError, match=r"README\.md: its metadata cannot be read"):
        tdpo.push_run(run, tmp_path / "second", quiet=True)
    assert not (tmp_path / "second").exists()


def test_a_checkpoint_of_an_unfinished_run_goes_by_its_step(run, tmp_path):
    unfinish(run)
    with pytest.raises(ConfigError, match=r"has not come to its end.*--checkpoint N; there are 2, 4"):
        tdpo.push_run(run, tmp_path / "out", quiet=True)
    with pytest.raises(ConfigError, match=r"no checkpoint of that step; there are 2, 4"):
        tdpo.push_run(run, tmp_path / "out", checkpoint=3, quiet=True)
    tdpo.push_run(run, tmp_path / "out", checkpoint=2, quiet=True)
    assert names(tmp_path / "out") == MODEL | ABOUT
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        run / "checkpoint-2" / "model.safetensors"
    ).read_bytes()
    assert "The policy is that of step 2" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_was_cut_short_stays(run, tmp_path):
    weights = run / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="holds no whole model"):
        tdpo.push_run(run, tmp_path / "out", checkpoint=2, quiet=True)


def test_what_lies_in_the_targets_place_is_kept(finished, tmp_path):
    out = tmp_path / "out"
    tdpo.push_run(finished, out, with_samples=True, quiet=True)
    with pytest.raises(ConfigError, match=r"holds a model already.*--overwrite"):
        tdpo.push_run(finished, out, quiet=True)
    tdpo.push_run(finished, out, overwrite=True, quiet=True)
    assert "samples.jsonl" not in names(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt, which no push has written"):
        tdpo.push_run(finished, out, overwrite=True, quiet=True)
    assert (out / "notes.txt").read_text() == "mine"
    for place in (finished, finished / "inside"):
        with pytest.raises(ConfigError, match="is the run's own folder"):
            tdpo.push_run(finished, place, overwrite=True, quiet=True)


def test_a_push_that_is_cut_off_leaves_no_model(run, tmp_path, monkeypatch):
    """The disk is full after the first files."""
    copy, done = shutil.copyfile, []

    def full(source, target):
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        done.append(target)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="No space left"):
        tdpo.push_run(run, tmp_path / "out", quiet=True)
    assert sorted(os.listdir(tmp_path)) == ["dpo"]


def test_a_store_gets_what_makes_it_a_model_last(finished):
    store = fsspec.filesystem("memory")
    tdpo.push_run(finished, "memory://push/dpo", quiet=True)
    assert {path.removeprefix("/push/dpo/") for path in store.find("/push/dpo")} == MODEL | ABOUT | {
        "eval/eval.json"
    }
    with pytest.raises(ConfigError, match="holds a model already"):
        tdpo.push_run(finished, "memory://push/dpo", quiet=True)
    # Without its config.json it is what a cut-off push leaves, and may be gone on with.
    store.rm("/push/dpo/config.json")
    store.pipe("/push/dpo/model-00001-of-00002.safetensors", b"of an earlier push")
    tdpo.push_run(finished, "memory://push/dpo", quiet=True)
    assert store.cat("/push/dpo/config.json") == (finished / "config.json").read_bytes()
    assert not store.exists("/push/dpo/model-00001-of-00002.safetensors")


def test_a_dry_run_lists_what_would_go(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(finished), "me/dpo", "--dry-run"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"model.safetensors {(finished / 'model.safetensors').stat().st_size:>19,}".split() == [
        word for line in shown.splitlines() if "model.safetensors" in line for word in line.split()
    ]
    assert "left out:" in shown
    assert "samples.jsonl" in shown
    with pytest.raises(SystemExit):
        main(["push", str(finished), str(tmp_path / "out"), "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["commit"] is None
    assert not (tmp_path / "out").exists()


def test_a_name_that_could_be_a_folders_is_not_guessed(finished, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hf://out/dpo for the one, \./out/dpo for the other"):
        tdpo.push_run(finished, "out/dpo", dry_run=True)
    assert tdpo.push_run(finished, "hf://out/dpo", dry_run=True).target == "out/dpo"
    tdpo.push_run(finished, "./out/dpo", quiet=True)
    assert (tmp_path / "out" / "dpo" / "config.json").is_file()
    with pytest.raises(ConfigError, match="a repository is named USER/NAME"):
        tdpo.push_run(finished, "hf://one/two/three", dry_run=True)
    with pytest.raises(ConfigError, match=r"--private: TARGET \./here is no repository"):
        tdpo.push_run(finished, "./here", private=True, dry_run=True)


def test_a_report_goes_when_it_is_asked_for(run, tmp_path):
    pytest.importorskip("vl_convert")
    assert (
        "would be made"
        in tdpo.push_run(run, tmp_path / "out", report=True, dry_run=True).left_out["report.html"]
    )
    tdpo.push_run(run, tmp_path / "out", report=True, quiet=True)
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert "--report sends it" in tdpo.push_run(run, "me/dpo", dry_run=True).left_out["report.html"]


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    with hub_server(tmp_path_factory.mktemp("hf")) as found:
        yield found


@pytest.fixture(scope="module")
def call(standin):
    with hub_client(standin[1]) as call:
        yield partial(call, "push_run")


@pytest.fixture
def hub(standin):
    standin[0].repos.clear()
    standin[0].objects.clear()
    return standin[0]


def test_the_hub_gets_a_model_in_one_commit(call, hub, finished):
    done = call(finished, "me/dpo", private=True)
    repo = hub.repos["me/dpo"]
    assert (repo["kind"], repo["private"], len(repo["commits"])) == ("model", True, 2)
    files = hub.files("me/dpo")
    assert files.keys() - {".gitattributes"} == MODEL | ABOUT | {"eval/eval.json"}
    assert files["model.safetensors"] == (finished / "model.safetensors").read_bytes()
    assert done["commit"] == repo["branches"]["main"]
    assert 'from_pretrained("me/dpo")' in files["README.md"].decode()


def test_the_hubs_repository_is_replaced_when_asked_in_one_commit(call, hub, finished):
    call(finished, "me/dpo", with_samples=True)
    with pytest.raises(TdpoError, match=r"me/dpo on the hub: holds a model already.*--overwrite"):
        call(finished, "me/dpo")
    before = len(hub.repos["me/dpo"]["commits"])
    call(finished, "me/dpo", overwrite=True)
    assert len(hub.repos["me/dpo"]["commits"]) == before + 1
    assert "samples.jsonl" not in hub.files("me/dpo")
    hub.commit(hub.repos["me/dpo"], "main", {**hub.files("me/dpo"), "LICENSE": b"mine"})
    with pytest.raises(TdpoError, match="holds LICENSE, which no push has written"):
        call(finished, "me/dpo", overwrite=True)


def test_a_branch_is_made_and_pushed_to(call, hub, finished):
    call(finished, "me/dpo", revision="v2")
    assert "config.json" in hub.files("me/dpo", "v2")
    assert "config.json" not in hub.files("me/dpo", "main")


def test_the_hub_refusing_is_one_line(call, hub, finished):
    with pytest.raises(TdpoError, match=r"cannot push to other/dpo on the hub: .*hf auth login"):
        call(finished, "other/dpo")
    assert hub.repos == {}
    with pytest.raises(CacheError, match="is switched off; unset HF_HUB_OFFLINE"):
        tdpo.push_run(finished, "me/dpo", quiet=True)
