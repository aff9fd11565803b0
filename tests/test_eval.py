"""``tdpo eval``: finished policies on cached pairs, compared with their own plain forward passes."""

import json
import math
import shutil
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bad_input.provoke import run_command
from doc_blocks import blocks_of
from support import make_judge, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

import tdpo
from tdpo.core.cli import main
from tdpo.core.errors import ConfigError
from tdpo.core.runs.folder import RunFolder

PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def exact(tmp_path_factory, reference, pairs):
    """A cache of whole distributions, in which two pairs share a prompt with two others."""
    folder = tmp_path_factory.mktemp("exact")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[:14]]
    rows += [{**rows[at], "chosen": rows[at + 1]["chosen"]} for at in (0, 4)]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "topic": "ab"[at % 2], "score": at}) + "\n" for at, row in enumerate(rows))
    )
    tdpo.build_cache(reference, folder / "rows.jsonl", folder / "cache", distribution="exact", quiet=True)
    return folder / "cache"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, exact):
    """Two runs, trained from the exact cache and evaluated on it. Treat as read-only."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    options = {"learning_rate": 3e-3, "max_steps": 3, "eval_cache": [f"held={exact}"], "quiet": True}
    for plugin in ("dpo", "tdpo2"):
        tdpo.fit(plugin, exact, output=str(folder / plugin), **options)
    return folder


@pytest.fixture(scope="module")
def both(runs):
    """Both runs' evaluation, with slices."""
    return tdpo.evaluate(runs / "dpo", runs / "tdpo2", bootstrap=200, slice=["prompt_tokens=2"], quiet=True)


def naive(reference, policy, exact):
    """Figures of each pair by the definitions, float64, from whole logits: pair id -> name -> value."""
    models = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64) for one in (reference, policy)]
    found = {}
    for scored in tdpo.open_cache(exact):
        pair, figures = scored.pair, {}
        for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            row = torch.tensor([[*pair.prompt_ids, *ids]])
            with torch.no_grad():
                p, q = (m(row).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1) for m in models)
            at = torch.tensor(ids.astype("int64"))[:, None]
            ref, logp = p.gather(1, at).sum().item(), q.gather(1, at).sum().item()
            figures |= {
                f"logps/{side}": logp,
                f"log_ratios/{side}": logp - ref,
                f"kl/{side}": (p.exp() * (p - q)).sum().item(),
                f"reverse_kl/{side}": (q.exp() * (q - p)).sum().item(),
                f"entropy/{side}": -(q.exp() * q).sum(1).mean().item(),
                f"logps_per_token/{side}": logp / len(ids),
                f"{side}_tokens": len(ids),
            }
        found[pair.pair_id] = figures
    return found


def test_figures_of_pairs_are_those_of_the_definitions(both, runs, reference, exact):
    expected = naive(reference, runs / "dpo", exact)
    table = both.evaluated[0].table
    assert sorted(table.ids) == sorted(expected)
    for row, pair_id in enumerate(table.ids):
        for name, value in expected[pair_id].items():
            found = table.columns[name] if name.endswith("tokens") else table.figures[name]
            # The cache holds hidden states in bfloat16 where the reference's own precision is higher.
            assert found[row] == pytest.approx(value, rel=2e-3, abs=2e-3), name
        margin = 0.1 * (expected[pair_id]["log_ratios/chosen"] - expected[pair_id]["log_ratios/rejected"])
        assert table.figures["rewards/margins"][row] == pytest.approx(margin, abs=1e-5)
        assert table.figures["loss"][row] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-5)
        assert table.figures["rewards/accuracies"][row] == float(margin > 0)
        apart = expected[pair_id]["chosen_tokens"] - expected[pair_id]["rejected_tokens"]
        assert table.figures["rules/longer"][row] == (np.sign(apart) + 1) / 2
        assert table.figures["agreement/longer"][row] == (np.sign(apart) * np.sign(margin) + 1) / 2


def test_what_is_reported_is_the_mean_over_pairs_or_tokens_with_an_interval(both):
    evaluation = both.document["evaluations"][0]
    table, figures = both.evaluated[0].table, evaluation["figures"]
    assert (evaluation["run"], evaluation["cache"], evaluation["pairs"]) == ("dpo", "held", len(table))
    assert evaluation["prompts"] == len(set(table.groups)) < len(table)
    for name in ("rewards/margins", "kl/margin", "loss", "calibration/brier"):
        assert figures[name]["value"] == pytest.approx(table.figures[name].mean())
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
        assert figures[name]["prompts"] == evaluation["prompts"]
    tokens = table.columns["chosen_tokens"]
    expected = (table.figures["entropy/chosen"] * tokens).sum() / tokens.sum()
    assert figures["entropy/chosen"]["value"] == pytest.approx(expected)


def test_the_figures_are_those_that_the_fit_logged(both, runs):
    """The last evaluation of the run is of the policy that was saved."""
    for evaluation in both.document["evaluations"]:
        lines = (runs / evaluation["run"] / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines if "eval_held_loss" in line][-1]
        for name in ("loss", "rewards/margins", "rewards/chosen", "kl/chosen", "kl/rejected", "entropy"):
            if evaluation["run"] == "dpo" and name.startswith("kl/"):
                continue  # its fit did not read the whole distributions
            value = evaluation["figures"][name]["value"]
            assert value == pytest.approx(logged[f"eval_held_{name}"], rel=1e-3, abs=1e-5), name


def test_runs_are_compared_pair_by_pair(both):
    (found,) = both.document["comparisons"]
    assert (found["a"], found["b"], found["cache"], found["only_a"]) == ("dpo", "tdpo2", "held", 0)
    a, b = (one.table for one in both.evaluated)
    assert a.ids.tolist() == b.ids.tolist()
    for name in ("loss", "kl/chosen", "logps/margins"):
        value = (b.figures[name] - a.figures[name]).mean()
        assert found["figures"][name]["value"] == pytest.approx(value, abs=1e-12)
        assert 0 < found["figures"][name]["p"] <= 1
    assert any("give one --plugin to measure both by the same" in note for note in found["notes"])
    assert [one["pairs"] for one in found["slices"]] == [
        one["pairs"] for one in both.document["evaluations"][0]["slices"]
    ]


def test_slices_hold_every_pair_once_and_few_prompts_are_marked(both):
    evaluation = both.document["evaluations"][1]
    assert sum(one["pairs"] for one in evaluation["slices"]) == evaluation["pairs"]
    assert all(one["few"] and one["column"] == "prompt_tokens" for one in evaluation["slices"])
    mean = sum(one["pairs"] * one["figures"]["loss"]["value"] for one in evaluation["slices"])
    assert mean / evaluation["pairs"] == pytest.approx(evaluation["figures"]["loss"]["value"])


def test_the_objective_can_be_another_than_the_run_s(runs):
    found = tdpo.evaluate(
        runs / "dpo", runs / "tdpo2", plugin="dpo", set={"beta": 0.5}, bootstrap=0, quiet=True
    )
    for one in found.evaluated:
        figures = one.table.figures
        np.testing.assert_allclose(figures["rewards/chosen"], 0.5 * figures["log_ratios/chosen"], atol=1e-5)
    assert found.document["comparisons"][0]["notes"] == []


def test_a_model_that_is_no_run_is_evaluated_by_dpo(runs, exact, reference):
    found = tdpo.evaluate(reference, runs / "dpo", cache=exact, bootstrap=20, quiet=True)
    model, _ = found.document["runs"]
    assert not model["is_run"]
    assert model["plugin"] == "dpo"
    assert "rewards and loss are those of dpo" in model["notes"][0]
    # The run's cache is named, the one given here is not: both are the only one of their policy.
    assert len(found.document["comparisons"]) == 1
    evaluation = found.document["evaluations"][0]
    assert any("its margins are rounding" in note for note in evaluation["notes"])
    assert evaluation["figures"]["calibration/brier"]["value"] == pytest.approx(0.25, abs=1e-4)
    assert found.out is None


def test_pairs_of_different_caches_are_joined_by_id(runs, cache, exact, tmp_path):
    """One run on the exact cache, the other on a copy without its first pairs, of another sample."""
    rows = (exact.parent / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:2:-1]) + "\n")
    model = tdpo.open_cache(exact).manifest.provenance["reference"]
    tdpo.build_cache(model, tmp_path / "rows.jsonl", tmp_path / "other", head=4, tail=4, quiet=True)
    moved = tmp_path / "moved"
    shutil.copytree(runs / "tdpo2", moved)
    text = (moved / "tdpo.yaml").read_text()
    (moved / "tdpo.yaml").write_text(text.replace(f"held={exact}", f"held={tmp_path / 'other'}"))
    record = json.loads((moved / "run.json").read_text())
    record["evaluation"] = {}
    (moved / "run.json").write_text(json.dumps(record))
    found = tdpo.evaluate(runs / "tdpo2", moved, bootstrap=50, quiet=True)
    (comparison,) = found.document["comparisons"]
    assert (comparison["pairs"], comparison["only_a"], comparison["only_b"]) == (13, 3, 0)
    assert "evaluated on different caches" in comparison["notes"][0]
    # The same policy: what does not hang on the sample is the same.
    assert comparison["figures"]["logps/chosen"]["value"] == pytest.approx(0, abs=1e-5)
    assert comparison["figures"]["kl/chosen"]["value"] != 0


def test_policies_without_a_pair_in_common_are_shown_and_not_compared(runs, pairs, tmp_path, capsys):
    rows = pairs.read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[20:24]) + "\n")
    model = tdpo.open_cache(next(iter(tdpo_caches(runs)))).manifest.provenance["reference"]
    tdpo.build_cache(model, tmp_path / "rows.jsonl", tmp_path / "other", quiet=True)
    moved = tmp_path / "moved"
    shutil.copytree(runs / "dpo", moved)
    for change in (f"[held={tmp_path / 'other'}]", f"[a={tmp_path / 'other'}, b={tmp_path / 'other'}]"):
        config = yaml.safe_load((moved / "tdpo.yaml").read_text())
        config["fit"]["eval_cache"] = yaml.safe_load(change)
        (moved / "tdpo.yaml").write_text(yaml.safe_dump(config))
        (moved / "run.json").unlink(missing_ok=True)
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(runs / "dpo"), str(moved), "--bootstrap", "20", "--slice", "row"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "no pairs in common" in shown or "no caches of the same name" in shown
        assert "other, 4 pairs" in shown


def tdpo_caches(runs):
    """The evaluation caches of a run."""
    return RunFolder.open(runs / "dpo").eval_caches.values()


def test_a_cache_of_another_reference_is_allowed_and_said(runs, exact, tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), seed=5).save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    tdpo.build_cache(tmp_path / "second", exact.parent / "rows.jsonl", tmp_path / "other", quiet=True)
    found = tdpo.evaluate(
        runs / "dpo", cache=tmp_path / "other", out=tmp_path / "out", bootstrap=0, quiet=True
    )
    (evaluation,) = found.document["evaluations"]
    assert any("was built from another reference than the run's" in note for note in evaluation["notes"])
    own = tdpo.evaluate(runs / "dpo", out=tmp_path / "out", bootstrap=0, quiet=True)
    assert own.document["evaluations"][0]["notes"] == []
    np.testing.assert_allclose(
        found.evaluated[0].table.figures["logps/chosen"],
        own.evaluated[0].table.figures["logps/chosen"],
        rtol=1e-5,
    )


def test_labels_are_those_of_the_cache_also_for_a_run_with_swapped_ones(exact, tmp_path):
    options = {"max_steps": 4, "learning_rate": 3e-3, "quiet": True, "eval_cache": [str(exact)]}
    tdpo.fit("dpo", exact, output=str(tmp_path / "swapped"), swap=True, **options)
    found = tdpo.evaluate(tmp_path / "swapped", bootstrap=0, quiet=True)
    assert found.document["evaluations"][0]["figures"]["rewards/margins"]["value"] < 0
    assert "was trained with --swap" in found.document["runs"][0]["notes"][0]


def test_a_limit_draws_the_same_pairs_of_every_cache(runs, exact):
    options = {"limit": 5, "bootstrap": 0, "quiet": True}
    first, again, other = (
        tdpo.evaluate(runs / "dpo", seed=seed, out=str(runs.parent / "limited"), **options)
        for seed in (0, 0, 1)
    )
    ids = [one.evaluated[0].table.ids.tolist() for one in (first, again, other)]
    assert len(ids[0]) == 5
    assert ids[0] == ids[1] != ids[2]
    assert first.document["evaluations"][0]["pairs_in_cache"] == 16


def test_columns_of_other_data_are_found_by_id_by_row_or_by_place(runs, exact, tmp_path):
    data = exact.parent / "rows.jsonl"
    in_order = tdpo.evaluate(runs / "dpo", columns=data, slice="topic", bootstrap=0, quiet=True)
    table = in_order.evaluated[0].table
    assert table.columns["score"].tolist() == table.columns["row"].tolist()
    slices = in_order.document["evaluations"][0]["slices"]
    assert [(one["label"], one["pairs"]) for one in slices] == [("a", 8), ("b", 8)]

    ids = table.ids.tolist()
    by_id = pa.table({"pair_id": ids[::-1][:10], "length": [1.5] * 5 + [None] * 5})
    pq.write_table(by_id, tmp_path / "more.parquet")
    (tmp_path / "more.csv").write_text("row,source\n" + "".join(f"{at},s{at % 3}\n" for at in range(20)))
    found = tdpo.evaluate(
        runs / "dpo",
        columns=[str(tmp_path / "more.parquet"), str(tmp_path / "more.csv")],
        slice=["length", "source"],
        bootstrap=0,
        quiet=True,
    )
    slices = found.document["evaluations"][0]["slices"]
    assert [(one["label"], one["pairs"]) for one in slices[:2]] == [("1.5", 5), ("(none)", 11)]
    assert {one["label"] for one in slices[2:]} == {"s0", "s1", "s2"}


def test_a_batch_level_loss_is_that_of_the_run_s_batches(cache, tmp_path):
    tdpo.fit(
        "aot", cache, output=str(tmp_path / "aot"), max_steps=2, batch_size=8, eval_cache=[str(cache)],
        learning_rate=1e-3, quiet=True,
    )  # fmt: skip
    found = tdpo.evaluate(tmp_path / "aot", bootstrap=0, batch_tokens=64, quiet=True)
    lines = (tmp_path / "aot" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines if "eval_loss" in line][-1]
    assert found.document["evaluations"][0]["figures"]["loss"]["value"] == pytest.approx(
        logged["eval_loss"], rel=1e-4
    )


def test_a_fitted_lora_is_evaluated_on_its_base(cache, tmp_path):
    pytest.importorskip("peft")
    tdpo.fit(
        "dpo", cache, output=str(tmp_path / "lora"), max_steps=2, lora=4, learning_rate=1e-2,
        eval_cache=[str(cache)], quiet=True,
    )  # fmt: skip
    found = tdpo.evaluate(tmp_path / "lora", bootstrap=0, quiet=True)
    lines = (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines if "eval_loss" in line][-1]
    value = found.document["evaluations"][0]["figures"]["rewards/margins"]["value"]
    assert value == pytest.approx(logged["eval_rewards/margins"], rel=1e-3, abs=1e-6)


# The command line and what it writes.


def test_the_files_are_read_by_other_tools(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(runs / "tdpo2"), "--bootstrap", "50", "--slice", "row=2"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "rewards/accuracies" in shown
    assert "row: 0 to 7 (few)" in shown
    assert "ends of the 95 % interval" in shown
    folder = runs / "tdpo2" / "eval"
    assert sorted(path.name for path in folder.iterdir()) == ["eval.json", "pairs.parquet"]
    document = json.loads((folder / "eval.json").read_text())
    assert document["format"] == "tdpo-eval"
    assert document["command"].startswith(f"tdpo eval {runs / 'tdpo2'} --slice row=2 --bootstrap 50")
    rows = duckdb.sql(
        f"SELECT count(*), count(DISTINCT pair_id), avg(rewards_margins), avg(kl_rejected - kl_chosen) "
        f"FROM '{folder / 'pairs.parquet'}' WHERE run = 'tdpo2'"
    ).fetchall()
    figures = document["evaluations"][0]["figures"]
    assert rows[0][:2] == (16, 16)
    assert rows[0][2:] == pytest.approx(
        (figures["rewards/margins"]["value"], figures["kl/margin"]["value"]), abs=1e-6
    )


def test_json_is_the_document_and_a_condition_that_does_not_hold_exits_with_1(runs, tmp_path, capsys):
    asked = f"tdpo eval {runs / 'dpo'} --out {tmp_path / 'out'} --metric rewards/* --bootstrap 20"
    with pytest.raises(SystemExit) as ended:
        main(f"{asked} --json --require rewards/accuracies>=0 --require loss.high<0.1".split()[1:])
    assert ended.value.code == 1
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "eval.json").read_text())
    assert {name.partition("/")[0] for name in document["evaluations"][0]["figures"]} == {"rewards"}
    assert [(one["condition"], one["passed"]) for one in document["checks"]] == [
        ("rewards/accuracies>=0", True),
        ("loss.high<0.1", False),
    ]
    assert run_command(f"{asked} --require rewards/accuracies>=0").code == 0


def test_a_checkpoint_stands_in_for_the_policy(runs):
    checkpoint = runs / "dpo" / "checkpoint-3"
    own, other = (
        tdpo.evaluate(runs / "dpo", model=model, bootstrap=0, quiet=True) for model in (None, checkpoint)
    )
    assert other.document["runs"][0]["policy"] == str(checkpoint)
    np.testing.assert_array_equal(
        own.evaluated[0].table.figures["loss"], other.evaluated[0].table.figures["loss"]
    )


@pytest.mark.slow
def test_every_command_of_the_page_runs(reference, pairs, tmp_path, monkeypatch):
    """In a folder that holds what they speak of."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(reference)
    make_judge("judge", positions=2048)
    Path("rewards.py").write_text("def sentiment(prompts, completions):\n    return map(len, completions)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("topics.csv").write_text("row,topic\n" + "".join(f"{at},{'ab'[at % 2]}\n" for at in range(8)))
    tdpo.build_cache("model", pairs, "tdpo-cache-heldout", limit=8, quiet=True)
    Path("heldout").symlink_to("tdpo-cache-heldout")
    options = {"max_steps": 1, "eval_cache": ["tdpo-cache-heldout"], "quiet": True}
    for plugin in ("dpo", "tdpo2"):
        tdpo.fit(plugin, "tdpo-cache-heldout", output=f"runs/{plugin}", **options)
    blocks = blocks_of(PAGE)
    commands = [line for block in blocks if block.language == "bash" for line in block.commands]
    assert len(commands) > 8
    for command in commands:
        # A condition may not hold of a policy that learnt nothing.
        assert run_command(command.partition("  #")[0]).code in (0, 1), command
    for query in (block.text for block in blocks if block.language == "sql"):
        assert duckdb.sql(query).fetchall()


def test_the_page_names_every_figure_and_column(runs):
    """And the parts of the document."""
    page = PAGE.read_text()
    found = tdpo.evaluate(runs / "tdpo2", bootstrap=10, slice="row=2", out=runs.parent / "named", quiet=True)
    names = [*found.evaluated[0].table.names, *found.evaluated[0].table.columns]
    assert [
        name for name in names if f"`{name}`" not in page and f"`{name.replace('/', '_')}`" not in page
    ] == []
    (evaluation,) = found.document["evaluations"]
    for part in (found.document, found.document["runs"][0], evaluation, evaluation["slices"][0]):
        assert [key for key in part if f"`{key}`" not in page] == []


def test_python_refuses_what_the_command_line_does(runs):
    with pytest.raises(ConfigError, match="confidence=2"):
        tdpo.evaluate(runs / "dpo", confidence=2)
    with pytest.raises(ConfigError, match="name what to evaluate"):
        tdpo.evaluate()
