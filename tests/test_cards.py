"""The card of a run tells how it is made again, and what it was made of; so does that of a cache."""

import json
import re
import shlex
import shutil
from dataclasses import fields

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from support import write_pairs

import tdpo
from tdpo.cache.manifest import identity_hash
from tdpo.core.cli import main
from tdpo.core.config.build import AddConfig, BuildConfig
from tdpo.core.config.command import add_command, build_command, fit_command
from tdpo.core.config.file import fit_config
from tdpo.core.config.fit import FitConfig
from tdpo.core.options import construct
from tdpo.core.runs.folder import RunFolder
from tdpo.core.training.card import run_card

COMMANDS = """\
tdpo cache build --ref model --dataset pairs.jsonl --head 4 --shard-rows 20
tdpo cache build --ref model --dataset 'held out.jsonl' --limit 20 --head 4 --out held
tdpo cache add --name wide --head 12 --tail 4
tdpo cache add --name wide --head 12 --tail 4 held
tdpo fit --plugin tdpo2 --reference wide --set alpha=0.7 --max-steps 4 --learning-rate 1e-3 \
--logging-steps 1 --eval-cache held --set training.weight_decay=0.01
"""
MEASURED = re.compile(r"tokens_per_second|peak_memory_gb|.*_runtime|.*_per_second")


def run_line(line):
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    assert ended.value.code == 0


def events(folder):
    """What was logged, but for what is measured of the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not MEASURED.fullmatch(k)} for line in lines]


@pytest.fixture(scope="module")
def made(tmp_path_factory, reference):
    """A folder in which the commands above were typed. Treat as read-only."""
    folder = tmp_path_factory.mktemp("made")
    begin(folder, reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in COMMANDS.splitlines():
            run_line(line)
    return folder


def begin(folder, reference):
    (folder / "model").symlink_to(reference)
    write_pairs(folder / "pairs.jsonl", 40)
    write_pairs(folder / "held out.jsonl", 24, seed=1)


@pytest.fixture(scope="module")
def card(made):
    return ModelCard.load(made / "runs" / "tdpo2" / "README.md")


def commands(card):
    section = card.text.partition("## Make it again")[2]
    return section.split("```bash\n")[1].split("```")[0].splitlines()


def test_its_commands_make_the_same_run(made, card, reference, tmp_path, monkeypatch):
    begin(tmp_path, reference)
    monkeypatch.chdir(tmp_path)
    lines = commands(card)
    assert [line.split()[:3] for line in lines] == [
        ["tdpo", "cache", "build"], ["tdpo", "cache", "add"],
        ["tdpo", "cache", "build"], ["tdpo", "cache", "add"], ["tdpo", "fit", "--plugin"],
    ]  # fmt: skip
    for line in lines:
        run_line(line)
    again, first = tmp_path / "runs" / "tdpo2", made / "runs" / "tdpo2"
    assert events(again) == events(first)
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert commands(ModelCard.load(again / "README.md")) == lines


def test_its_resolved_options_make_the_same_run(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    run_line(f"tdpo fit --config runs/tdpo2/tdpo.yaml --output {tmp_path / 'again'}")
    assert events(tmp_path / "again") == events(made / "runs" / "tdpo2")


def test_it_says_what_the_run_was_made_of(made, card):
    manifest = tdpo.open_cache(made / "tdpo-cache").manifest
    record = json.loads((made / "runs" / "tdpo2" / "run.json").read_text())
    for part in (
        identity_hash(manifest.identity),
        manifest.identity["reference"]["weights_sha256"],
        manifest.identity["data"]["files"][0]["sha256"],
        manifest.identity["tokenizer"]["vocabulary_sha256"],
        identity_hash(manifest.scores["wide"].identity),
        "TDPO2(beta=0.1, alpha=0.7, reward_form='code')",
        "seed 0",
        f"tdpo {tdpo.__version__}",
        f"torch {record['provenance']['versions']['torch']}",
        "Trained for 4 steps in ",
        record["provenance"]["hardware"],
        "arXiv 2404.11999",
        'AutoModelForCausalLM.from_pretrained("tdpo2")',
        "tdpo eval tdpo2 --cache held",
    ):
        assert part in card.text, part


def test_its_metadata_are_a_hubs(made, card):
    last = [event for event in events(made / "runs" / "tdpo2") if "eval_loss" in event][-1]
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["tdpo", "preference-optimisation", "tdpo2"]
    # Folders of this machine are neither models nor data sets that a hub knows; no licence is made up.
    assert (card.data.base_model, card.data.datasets, card.data.license) == (None, None, None)
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert results["accuracy"] == last["eval_rewards/accuracies"]
    assert results["sequential_kl_rejected"] == last["eval_kl/rejected"]
    assert {one.dataset_name for one in card.data.eval_results} == {"held out.jsonl"}


def test_models_and_data_of_the_hub_are_named_as_such(made, tmp_path):
    folder = shutil.copytree(made / "runs" / "tdpo2", tmp_path / "tdpo2")
    record = json.loads((folder / "run.json").read_text())
    record["policy"] = {"architecture": "LlamaForCausalLM", "name": "some/model", "commit": "0" * 40}
    record["cache"]["base"]["data"] = {"source": "some/pairs", "config": None, "revision": "1" * 40}
    (folder / "run.json").write_text(json.dumps(record))
    card = ModelCard(run_card(RunFolder.open(folder)))
    assert (card.data.base_model, card.data.datasets) == ("some/model", ["some/pairs"])
    assert "1" * 40 in card.text


def test_a_run_without_a_record_has_a_card_that_says_so(made, tmp_path):
    folder = shutil.copytree(made / "runs" / "tdpo2", tmp_path / "tdpo2")
    (folder / "run.json").unlink()
    card = ModelCard(run_card(RunFolder.open(folder)))
    assert "how it was built is not recorded" in card.text
    assert "tdpo fit --plugin tdpo2" in card.text


def test_a_resumed_run_keeps_how_it_began(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    folder = shutil.copytree(made / "runs" / "tdpo2", tmp_path / "tdpo2")
    before = json.loads((folder / "run.json").read_text())["provenance"]
    run_line(f"tdpo fit --config runs/tdpo2/tdpo.yaml --output {folder} --resume")
    after = json.loads((folder / "run.json").read_text())["provenance"]
    assert after["created"] == before["created"]
    assert len(after["resumed"]) == 1
    assert after["finished"]["steps"] == 4


def test_a_caches_card_tells_how_it_is_built(made):
    card = (made / "held" / "README.md").read_text()
    assert "tdpo cache build --ref model --dataset 'held out.jsonl' --limit 20 --head 4\n" in card
    assert f"tdpo {tdpo.__version__}" in card
    assert tdpo.open_cache(made / "held").identity["reference"]["weights_sha256"] in card


def test_a_command_gives_back_what_it_was_made_of():
    config = FitConfig(
        plugin=["tdpo2", "sft=0.1"], weighting=["mallows"], cache="a b", set={"alpha": 0.5, "sft.x": "y"},
        eval_cache=["dev=one", "two"], bf16=True, lora=4, training={"weight_decay": 0.1, "optim_args": "a=b"},
    )  # fmt: skip
    assert fit_command(config) == (
        "tdpo fit --plugin tdpo2 --plugin sft=0.1 --weighting mallows --cache 'a b' --set alpha=0.5 "
        "--set sft.x=y --bf16 --lora 4 --eval-cache dev=one --eval-cache two "
        "--set training.weight_decay=0.1 --set training.optim_args=a=b"
    )
    built = BuildConfig(ref="m", dataset=["a", "b"], column_map={"prompt": "q"}, out="c", part="1/2")
    assert build_command(built) == "tdpo cache build --ref m --dataset a --dataset b --column-map prompt=q"
    assert build_command(BuildConfig(ref="m", dataset=["in memory"])) is None
    added = AddConfig(name="n", cache="c", statistic="s", set={"k": 3}, overwrite=True)
    assert add_command(added) == "tdpo cache add --name n --statistic s --set k=3"


SAFE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=9)


@given(
    cache=SAFE.filter(lambda text: not text.startswith("-") and text.lower() not in ("none", "null")),
    rate=st.floats(1e-12, 1e3),
    steps=st.none() | st.integers(1, 10**9),
    share=st.booleans(),
    alpha=st.floats(-1e6, 1e6),
)
def test_any_options_survive_being_typed(cache, rate, steps, share, alpha):
    """The command is read by the command line itself, which hands on what it was given."""
    from tdpo.core.cli.fit import fit
    from tdpo.core.cli.options import given as given_options

    config = construct(
        FitConfig,
        {"plugin": ["dpo"], "cache": cache, "learning_rate": rate, "max_steps": steps, "bf16": share,
         "set": {"alpha": str(alpha)}},
    )  # fmt: skip
    context = fit.make_context("fit", shlex.split(fit_command(config))[2:])
    options = {name: context.params[name] for name in (field.name for field in fields(FitConfig)) if name in
               context.params}  # fmt: skip
    assert fit_config(given_options(options)) == config
