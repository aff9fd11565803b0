"""The tiers of the reference's distribution on disk and in a fit: none, sparse, exact, full."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import make_model, make_tokenizer, run_tdpo

import tdpo
from tdpo.cache import encode
from tdpo.cache.pairs import SIDES
from tdpo.cache.schema import HEAD_NAME, parquet_options
from tdpo.core.checks import check_needs, statistics_to_read
from tdpo.core.config.file import fit_config
from tdpo.core.errors import CacheError, ConfigError
from tdpo.core.objective import Completions, Objective, PairLoss
from tdpo.core.scoring.layout import completion_mask, to_padded
from tdpo.core.training.arguments import training_arguments
from tdpo.core.training.data import CachedPairs, collate
from tdpo.core.training.trainer import PreferenceTrainer

FIRST = "pairs-00000.parquet"


@pytest.fixture(scope="module")
def build(tmp_path_factory, reference, pairs):
    """Build a cache of twelve pairs; the same options give the same folder. Treat as read-only."""
    built = {}

    def build(**options):
        key = json.dumps({k: str(v) for k, v in options.items()}, sort_keys=True)
        if key not in built:
            folder = tmp_path_factory.mktemp("tier") / "cache"
            options = {"ref": reference, "dataset": pairs, "limit": 12, **options}
            built[key] = tdpo.build_cache(out=folder, quiet=True, **options)
        return built[key]

    return build


@pytest.fixture
def spoilt(build, tmp_path):
    """A copy of an exact cache to spoil."""
    return shutil.copytree(build(distribution="exact").location, tmp_path / "copy")


def faults(folder):
    return tdpo.verify_cache(folder, quiet=True).faults


def rewrite(folder, column, change):
    """Change a column of the first shard and make the ledger fit the new file."""
    table = pq.read_table(folder / FIRST)
    at = table.schema.get_field_index(column)
    values = pa.array(change(table.column(column).to_pylist()), table.schema.field(at).type)
    table = table.set_column(at, table.schema.field(at), values)
    pq.write_table(table, folder / FIRST, **parquet_options(table.schema))
    content = (folder / FIRST).read_bytes()
    document = json.loads((folder / "manifest.json").read_text())
    document["shards"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    document["totals"]["bytes"] = len(content)
    (folder / "manifest.json").write_text(json.dumps(document))


def test_the_tiers_hold_what_they_say(build):
    assert build(distribution="none").statistics == {"ref_logp", "ref_entropy"}
    assert build().statistics == {"ref_logp", "ref_entropy", "dist"}
    exact = build(distribution="exact")
    assert exact.statistics == {"ref_logp", "ref_entropy", "ref_hidden"}
    assert (exact.cached.hidden, exact.cached.hidden_size) == ("float32", 32)
    both = build(distribution="exact", head=2, tail=1)
    assert both.statistics == {"ref_logp", "ref_entropy", "ref_hidden", "dist"}
    full = build(distribution="full")
    assert full[0].chosen.dist_logp.shape[1] == full.head == full.vocab_size
    assert full.tail == 0


def test_the_hidden_states_make_the_cached_log_probs(build):
    reader = build(distribution="exact", head=4, tail=2)
    scale, softcap, weight = 1.0, None, None
    from tdpo.cache.storage.files import Folder
    from tdpo.core.scoring.head_file import read_head

    head = read_head(Folder.at(reader.location), reader.cached)
    assert (head.scale, head.softcap, head.bias) == (scale, softcap, weight)
    for one in reader:
        for side in SIDES:
            values = one.side(side)
            log_p = torch.log_softmax(torch.from_numpy(values.ref_hidden.copy()) @ head.weight.T, -1)
            at_tokens = log_p.gather(-1, torch.from_numpy(one.pair.ids(side).astype(np.int64))[:, None])[:, 0]
            np.testing.assert_allclose(at_tokens, values.ref_logp, atol=1e-5)
            there = values.dist_logp > -np.inf
            at_entries = log_p.gather(-1, torch.from_numpy(values.dist_ids.astype(np.int64))).numpy()
            np.testing.assert_allclose(at_entries[there], values.dist_logp[there], rtol=1e-3, atol=1e-3)


def test_bfloat16_states_are_the_float32_ones_rounded(build):
    rounded, whole = build(distribution="exact", hidden_dtype="bfloat16"), build(distribution="exact")
    for a, b in zip(rounded, whole, strict=True):
        want = torch.from_numpy(b.rejected.ref_hidden.copy()).bfloat16().float()
        np.testing.assert_array_equal(a.rejected.ref_hidden, want)
    assert rounded.manifest.bytes < 0.75 * whole.manifest.bytes
    assert tdpo.verify_cache(rounded.location, rescore=3, quiet=True).ok


def test_a_bfloat16_reference_gets_bfloat16_states_that_lose_nothing(build):
    reader = build(distribution="exact", ref_dtype="bfloat16")
    assert reader.cached.hidden == "bfloat16"
    again = build(distribution="exact", ref_dtype="bfloat16", hidden_dtype="float32")
    for a, b in zip(reader, again, strict=True):
        np.testing.assert_array_equal(a.chosen.ref_hidden, b.chosen.ref_hidden)


def test_small_row_groups_hold_the_same(build, monkeypatch):
    whole = build(distribution="exact")
    monkeypatch.setattr(encode, "ROW_GROUP_BYTES", 5000)
    cut = build(distribution="exact", batch_tokens=4096)  # another folder
    assert len(cut.group_sizes) > len(whole.group_sizes) == 1
    for a, b in zip(cut, whole, strict=True):
        np.testing.assert_allclose(a.chosen.ref_hidden, b.chosen.ref_hidden, atol=1e-5)


@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_flipped_bit_of_the_head_is_found(spoilt, place):
    content = bytearray((spoilt / HEAD_NAME).read_bytes())
    content[place] ^= 1
    (spoilt / HEAD_NAME).write_bytes(content)
    [fault] = faults(spoilt)
    assert fault.file == HEAD_NAME
    assert "sha256" in fault.what


def test_a_missing_head_is_told_and_written_again_without_scoring(spoilt, reference, pairs):
    shard, head = (spoilt / FIRST).stat().st_mtime_ns, (spoilt / HEAD_NAME).read_bytes()
    (spoilt / HEAD_NAME).unlink()
    [fault] = faults(spoilt)
    assert (fault.file, "is missing" in fault.what) == (HEAD_NAME, True)
    with pytest.raises(CacheError, match=r"reference_head.safetensors is missing .* build command again"):
        tdpo.open_cache(spoilt)
    tdpo.build_cache(reference, pairs, spoilt, distribution="exact", limit=12, quiet=True)
    assert (spoilt / HEAD_NAME).read_bytes() == head
    assert (spoilt / FIRST).stat().st_mtime_ns == shard
    assert not faults(spoilt)


def test_a_resumed_build_leaves_a_whole_head_alone_and_mends_a_damaged_one(spoilt, reference, pairs):
    path = spoilt / HEAD_NAME
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    (spoilt / FIRST).unlink()
    tdpo.build_cache(reference, pairs, spoilt, distribution="exact", limit=12, quiet=True)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    tdpo.build_cache(reference, pairs, spoilt, distribution="exact", limit=12, quiet=True)
    assert path.read_bytes() == content
    assert not faults(spoilt)


def test_a_head_of_another_shape_is_told(spoilt):
    from safetensors.torch import save_file

    save_file(
        {"weight": torch.zeros(320, 16)},
        spoilt / HEAD_NAME,
        metadata={"head": '{"scale": 1.0, "softcap": null}'},
    )
    content = (spoilt / HEAD_NAME).read_bytes()
    document = json.loads((spoilt / "manifest.json").read_text())
    document["files"][HEAD_NAME] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (spoilt / "manifest.json").write_text(json.dumps(document))
    [fault] = faults(spoilt)
    assert fault.what == "holds weight [320, 16] instead of [320, 32]"
    with pytest.raises(CacheError, match=r"holds weight \[320, 16\]"):
        tdpo.fit("tdpo2", spoilt, output=str(spoilt / "run"), quiet=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: [rows[0][:-1], *rows[1:]], "values, the"),
        (lambda rows: [[float("nan"), *rows[0][1:]], *rows[1:]], "token 0, entry 0: nan, a hidden"),
    ],
)
def test_damaged_hidden_states_are_found(spoilt, change, found):
    rewrite(spoilt, "chosen_ref_hidden", change)
    [fault] = faults(spoilt)
    assert fault.column == "chosen_ref_hidden"
    assert found in fault.what


def test_states_that_are_no_bfloat16_values_are_found(build, tmp_path):
    folder = shutil.copytree(build(distribution="exact", hidden_dtype="bfloat16").location, tmp_path / "copy")

    def move_the_first(rows):
        return [[rows[0][0] * (1 + 2**-12), *rows[0][1:]], *rows[1:]]

    rewrite(folder, "rejected_ref_hidden", move_the_first)
    [fault] = faults(folder)
    assert "is no bfloat16 value" in fault.what


def test_other_states_of_the_reference_are_found_by_rescoring(spoilt):
    rewrite(spoilt, "chosen_ref_hidden", lambda rows: [[x * 1.1 for x in row] for row in rows])
    report = tdpo.verify_cache(spoilt, rescore=12, quiet=True)
    assert {fault.column for fault in report.faults} == {"chosen_ref_hidden"}
    assert "of its size" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "none", "head": 4}, "--head 4 does not go with --distribution none"),
        ({"distribution": "full", "tail": 4}, "--tail 4 does not go with --distribution full"),
        ({"distribution": "half"}, "is not one of none, sparse, exact, full"),
        ({"distribution": "exact", "hidden_dtype": "float16"}, "is not one of auto, bfloat16, float32"),
    ],
)
def test_options_that_contradict_each_other_are_refused(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_large_vocabulary_is_not_cached_in_full(build, tmp_path):
    make_model(20_000).save_pretrained(tmp_path / "large")
    make_tokenizer().save_pretrained(tmp_path / "large")
    with pytest.raises(ConfigError, match=r"vocabulary of 20,000, .* use --distribution exact"):
        build(ref=tmp_path / "large", distribution="full")


class ReverseKL(Objective):
    """Stands for any objective that reads the reverse KL."""

    needs = frozenset({"reverse_kl"})

    def __call__(self, chosen: Completions, rejected: Completions) -> PairLoss:
        loss = chosen.mean(chosen.reverse_kl) + rejected.mean(rejected.reverse_kl)
        return PairLoss(loss, loss.detach(), loss.detach())


def test_the_reverse_kl_asks_for_an_exact_cache(build):
    config = fit_config({"plugin": "mine", "cache": "c"})
    for options in ({}, {"distribution": "none"}):
        with pytest.raises(CacheError, match="--distribution exact"):
            check_needs(config, ReverseKL(), build(**options))
    for options in ({"distribution": "exact"}, {"distribution": "full"}):
        check_needs(config, ReverseKL(), build(**options))


def test_whole_distributions_are_read_only_where_they_are_needed(build):
    dpo, tdpo2 = tdpo.objective("dpo"), tdpo.objective("tdpo2")
    base = {"ref_logp", "ref_entropy"}
    exact, full = build(distribution="exact"), build(distribution="full")
    both = build(distribution="exact", head=2, tail=1)
    assert statistics_to_read(dpo, exact) == statistics_to_read(dpo, full) == base
    assert statistics_to_read(dpo, both) == {*base, "dist"}
    assert statistics_to_read(tdpo2, both) == statistics_to_read(tdpo2, exact) == {*base, "ref_hidden"}
    assert statistics_to_read(tdpo2, full) == {*base, "dist"}


def policy_of(reference, by=0.1):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reference)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def trained_on(reader, policy, objective, tmp_path):
    """Loss and gradients of a training step from a cache, as a fit takes it."""
    config = fit_config({"plugin": "tdpo2", "cache": "c", "output": str(tmp_path / "run")})
    trainer = PreferenceTrainer(
        policy,
        objective,
        CachedPairs(reader, statistics_to_read(objective, reader)),
        check_start=False,
        args=training_arguments(config, evaluate=False),
    )
    batch = collate(trainer.train_dataset.__getitems__(list(range(8))))
    loss = trainer.compute_loss(trainer.model, batch)
    return loss, torch.autograd.grad(loss, list(policy.parameters()))


def online(reader, reference, policy, objective):
    """The same with both models in memory and full logits."""
    from transformers import AutoModelForCausalLM

    batch = collate([reader[i] for i in range(8)])
    mask = completion_mask(batch["lengths"])

    def log_probs(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.log_softmax(logits.reshape(-1, logits.shape[-1])[batch["score_positions"]], -1)

    with torch.no_grad():
        log_p = log_probs(AutoModelForCausalLM.from_pretrained(reference))
    log_q = log_probs(policy)
    labels = batch["score_ids"][:, :1]
    flat = {
        "logp": log_q.gather(-1, labels)[:, 0],
        "ref_logp": log_p.gather(-1, labels)[:, 0],
        "forward_kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(-1),
    }
    padded = {"mask": mask, **{name: to_padded(value, mask) for name, value in flat.items()}}
    sides = (Completions(**{n: v[part] for n, v in padded.items()}) for part in (slice(8), slice(8, None)))
    loss = objective(*sides).loss.mean()
    return loss, torch.autograd.grad(loss, list(policy.parameters()))


@pytest.mark.parametrize("objective", ["tdpo1", "tdpo2", "reverse"])
@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({"distribution": "exact"}, 1e-5),
        ({"distribution": "exact", "head": 2, "tail": 2}, 1e-5),
        ({"distribution": "exact", "hidden_dtype": "bfloat16"}, 1e-2),
        ({"distribution": "full"}, 1e-3),
    ],
)
def test_a_training_step_from_the_cache_is_the_one_with_two_models(
    build, reference, tmp_path, objective, options, within
):
    objective = ReverseKL() if objective == "reverse" else tdpo.objective(objective)
    reader = build(**options)
    loss, gradients = trained_on(reader, policy_of(reference), objective, tmp_path)
    want, truth = online(reader, reference, policy_of(reference), objective)
    torch.testing.assert_close(loss, want, rtol=within, atol=within)
    largest = max(gradient.abs().max() for gradient in truth)
    for ours, theirs in zip(gradients, truth, strict=True):
        assert (ours - theirs).abs().max() < 3 * within * largest


def test_a_fit_from_each_tier_starts_at_the_reference(build, tmp_path):
    for number, options in enumerate(({}, {"distribution": "exact"}, {"distribution": "full"})):
        result = tdpo.fit(
            "tdpo2",
            build(**options).location,
            output=str(tmp_path / str(number)),
            max_steps=1,
            batch_size=4,
            quiet=True,
        )
        assert result.metrics["loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert abs(result.metrics["kl/chosen"]) < 1e-4


def test_autocast_and_loader_workers_leave_the_reference_as_it_is(build, tmp_path):
    """The policy's products are rounded to bfloat16, the rebuilt reference's are not."""
    result = tdpo.fit(
        "tdpo2",
        build(distribution="exact").location,
        output=str(tmp_path / "run"),
        max_steps=1,
        batch_size=4,
        bf16=True,
        training={"dataloader_num_workers": 1},
        quiet=True,
    )
    assert result.metrics["loss"] == pytest.approx(np.log(2), abs=2e-2)
    assert 0 < result.metrics["kl/chosen"] < 5e-2


@pytest.mark.slow
def test_two_processes_train_from_an_exact_cache_as_one(build, tmp_path):
    """The reference's head reaches every process, inside the parallel wrapper."""
    location = build(distribution="exact", limit=16).location  # two whole steps
    options = [
        "--plugin", "tdpo2", "--cache", location, "--learning-rate", "1e-3", "--logging-steps", "1",
        "--optimizer", "sgd", "--max-steps", "2",
    ]  # fmt: skip
    run_tdpo("fit", *options, "--output", tmp_path / "one", "--batch-size", "8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "tdpo", "fit"]
    subprocess.run(
        [*launch, *options, "--output", tmp_path / "two", "--batch-size", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )

    def steps(name):
        events = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [event for event in events if "loss" in event]

    for x, y in zip(steps("one"), steps("two"), strict=True):
        for name in ("loss", "grad_norm", "kl/chosen"):
            assert x[name] == pytest.approx(y[name], abs=1e-5, rel=1e-5), name
    assert steps("one")[1]["kl/chosen"] > 1e-6
