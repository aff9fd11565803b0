"""Adding to a finished cache: equal to a naive pass of each model, whatever happens on the way."""

import dataclasses
import functools
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from added_plugin import Hooks
from support import make_model, make_tokenizer, run_tdpo, write_pairs

import tdpo
from tdpo.core.registry import plugin_manager

SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def models(tmp_path_factory, reference):
    """A folder of models with the reference's tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("positive", "negative"), start=1):
        make_model(len(make_tokenizer()), seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def mine(tmp_path, cache):
    """A copy of the cache to add to."""
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.fixture
def plugin():
    """The test plugin, registered as an installed one would be."""
    plugin_manager().register(Hooks, name="added 1.0")
    yield
    plugin_manager().unregister(Hooks)


@functools.cache
def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


def naive(folder, prompt, ids):
    """Log-probs [T, V] in float64 of one whole sequence."""
    with torch.no_grad():
        logits = loaded(folder)(torch.tensor([[*map(int, prompt), *map(int, ids)]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1).numpy()


def at_labels(log_p, ids):
    return log_p[np.arange(len(ids)), ids]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("pairs-*.parquet")}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def add(folder, name, **options):
    return tdpo.add_statistics(folder, name, quiet=True, **options)


def test_two_models_are_contrasted_beside_shards_that_stay_as_they_are(mine, models):
    before = files(mine)
    scores = add(mine, "tis", positive=models / "positive", negative=models / "negative")
    assert files(mine) == before
    assert sorted(path.name for path in (mine / "scores").iterdir()) == [
        f"tis-{index:05d}.parquet" for index in range(3)
    ]
    pairs = [record.pair for record in tdpo.open_cache(mine)][::7]
    values = scores.read(pairs)
    for at, pair in enumerate(pairs):
        for side in SIDES:
            for view in ("positive", "negative"):
                want = at_labels(naive(models / view, pair.prompt_ids, pair.ids(side)), pair.ids(side))
                np.testing.assert_allclose(values[f"{side}_{view}_logp"][at], want, atol=2e-5)
    entry = manifest(mine)["scores"]
    assert list(entry) == ["tis"]
    assert entry["tis"]["complete"]
    assert entry["tis"]["columns"]["positive_logp"]["shape"] == "token"
    assert set(entry["tis"]["identity"]) == {"positive", "negative"}
    assert tdpo.verify_cache(mine, quiet=True).ok


def test_one_model_is_contrasted_under_two_prompts_of_different_length(mine, reference):
    texts = {"positive": "a very good and great story ", "negative": "bad "}
    tokenizer = make_tokenizer()
    scores = add(mine, "prompts", positive_prompt=texts["positive"], negative_prompt=texts["negative"])
    pairs = [record.pair for record in tdpo.open_cache(mine)][::11]
    values = scores.read(pairs)
    for view, text in texts.items():
        put_in = tokenizer(text, add_special_tokens=False).input_ids
        for at, pair in enumerate(pairs):
            # The test's tokenizer adds no BOS: the text goes in front.
            prompt = [*put_in, *pair.prompt_ids]
            for side in SIDES:
                want = at_labels(naive(reference, prompt, pair.ids(side)), pair.ids(side))
                np.testing.assert_allclose(values[f"{side}_{view}_logp"][at], want, atol=2e-5)
    assert manifest(mine)["scores"]["prompts"]["identity"]["positive_prompt"] == texts["positive"]


def test_a_second_reference_brings_its_own_sample_and_entropies(mine, models):
    scores = add(mine, "second", ref=models / "positive", head=4, tail=3, entropy=True, seed=5)
    pairs = [record.pair for record in tdpo.open_cache(mine)][::11]
    values = scores.read(pairs)
    for at, pair in enumerate(pairs):
        for side in SIDES:
            log_p = naive(models / "positive", pair.prompt_ids, pair.ids(side))
            got = {name: values[f"{side}_{name}"][at] for name in scores.columns}
            np.testing.assert_allclose(got["ref_logp"], at_labels(log_p, pair.ids(side)), atol=2e-5)
            np.testing.assert_allclose(got["ref_entropy"], -(np.exp(log_p) * log_p).sum(-1), atol=5e-3)
            assert got["dist_ids"].shape == (len(pair.ids(side)), 7)
            np.testing.assert_allclose(
                got["dist_logp"], np.take_along_axis(log_p, got["dist_ids"].astype(int), 1), atol=5e-3
            )
            np.testing.assert_allclose(got["dist_logp"][:, :4], -np.sort(-log_p)[:, :4], atol=5e-3)
    assert manifest(mine)["scores"]["second"]["kind"] == "reference"
    assert manifest(mine)["scores"]["second"]["identity"]["statistics"]["seed"] == 5


def test_a_larger_sample_of_the_same_reference_holds_the_smaller_ones_head(mine):
    scores = add(mine, "larger", head=16, tail=16)
    assert manifest(mine)["scores"]["larger"]["kind"] == "sample"
    assert set(scores.columns) == {"dist_ids", "dist_logp"}
    records = list(tdpo.open_cache(mine))
    values = scores.read([record.pair for record in records])
    for at, record in enumerate(records):
        for side in SIDES:
            base, larger = getattr(record, side), values[f"{side}_dist_ids"][at]
            head = np.where(base.dist_logp[:, :8] > -np.inf, base.dist_ids[:, :8], larger[:, :8])
            np.testing.assert_array_equal(head, larger[:, :8])


def test_statistics_of_a_plugin_in_every_shape(mine, reference, plugin):
    pairs = [record.pair for record in tdpo.open_cache(mine)][::9]
    embedding = add(mine, "embedding", statistic="prompt-embedding", set={"last": "2"}).read(pairs)
    surprisal = add(mine, "bits", statistic="surprisal", batch_tokens=100).read(pairs)
    lengths = add(mine, "lengths", statistic="lengths").read(pairs)
    body = loaded(reference).model
    for at, pair in enumerate(pairs):
        with torch.no_grad():
            states = body(torch.tensor([pair.prompt_ids.tolist()])).last_hidden_state[0]
        np.testing.assert_allclose(embedding["prompt_embedding"][at], states[-2:].mean(0), atol=1e-5)
        for side in SIDES:
            ids = pair.ids(side)
            log_p = naive(reference, pair.prompt_ids, ids)
            own = at_labels(log_p, ids)
            np.testing.assert_allclose(surprisal[f"{side}_surprisal"][at], -own / np.log(2), atol=5e-5)
            np.testing.assert_array_equal(
                surprisal[f"{side}_rank"][at], (log_p > own[:, None] + 1e-9).sum(-1)
            )
            assert lengths[f"{side}_characters"][at].tolist() == [3 * len(ids)]
            assert lengths[f"{side}_first"][at].tolist() == [[i, 2 * i] for i in range(len(ids))]
    entry = manifest(mine)["scores"]["embedding"]
    assert entry["identity"]["options"] == {"last": 2}
    assert entry["columns"]["prompt_embedding"]["width"] == 32
    assert "reference" not in manifest(mine)["scores"]["lengths"]["identity"]
    assert tdpo.verify_cache(mine, quiet=True).ok


def test_the_same_command_again_computes_only_what_is_missing(mine, models):
    options = {"positive": models / "positive", "negative": models / "negative"}
    add(mine, "tis", **options)
    first = {path.name: path.read_bytes() for path in (mine / "scores").iterdir()}
    gone = mine / "scores" / "tis-00001.parquet"
    gone.unlink()
    with pytest.raises(tdpo.CacheError, match=r"tis-00001.parquet is missing.*tdpo cache add"):
        tdpo.open_scores(mine, "tis")
    others = {path: path.stat().st_mtime_ns for path in (mine / "scores").iterdir()}
    add(mine, "tis", **options)
    assert {path.name: path.read_bytes() for path in (mine / "scores").iterdir()} == first
    assert {path: path.stat().st_mtime_ns for path in others} == others
    # Nothing is missing: no model is even loaded.
    for name in ("positive", "negative"):
        assert manifest(mine)["scores"]["tis"]["identity"][name]["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["tis.pass-00000.parquet", "tis-00000.parquet"])
def test_killed_in_either_pass_it_goes_on_to_the_same_files(tmp_path, reference, models, at):
    """Killed once the first file of a pass is there: the rest is made by the same command."""
    data = write_pairs(tmp_path / "pairs.jsonl", 240)
    folder = tmp_path / "cache"
    tdpo.build_cache(reference, data, folder, shard_rows=20, quiet=True)
    whole = shutil.copytree(folder, tmp_path / "whole")
    options = {"positive": models / "positive", "negative": models / "negative"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tdpo", "cache", "add", folder, "--name", "tis"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / "scores" / at).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    add(folder, "tis", **options)
    add(whole, "tis", **options)
    ours, theirs = ({p.name: p.read_bytes() for p in (f / "scores").iterdir()} for f in (folder, whole))
    assert ours == theirs
    assert tdpo.verify_cache(folder, quiet=True).ok


def test_a_name_is_of_one_request_until_it_is_overwritten(mine, models):
    add(mine, "second", ref=models / "positive")
    with pytest.raises(
        tdpo.CacheError, match=r"other scores under the name second.*weights_sha256.*--overwrite"
    ):
        add(mine, "second", ref=models / "negative")
    with pytest.raises(tdpo.CacheError, match="the cache has scores second; choose another name"):
        add(mine, "SECOND", ref=models / "negative")
    before = (mine / "scores" / "second-00000.parquet").read_bytes()
    add(mine, "second", ref=models / "negative", overwrite=True)
    assert (mine / "scores" / "second-00000.parquet").read_bytes() != before
    # The wider manifest is still that of the base.
    assert manifest(mine)["complete"]
    assert tdpo.verify_cache(mine, quiet=True).ok


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "x.pass", "x" * 65, "é"])
def test_names_are_plain(mine, name):
    with pytest.raises(tdpo.TdpoError, match="a name is of letters"):
        add(mine, name, head=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say what to add: --positive MODEL"),
        ({"positive": "positive"}, "--negative MODEL must be given"),
        ({"positive": "positive", "negative": "positive"}, "are the same model"),
        ({"positive_prompt": "x"}, "--negative-prompt TEXT must be given"),
        ({"positive_prompt": "x", "negative_prompt": "x"}, "are the same"),
        ({"positive": "positive", "negative": "negative", "head": 4}, "--head does not go with --positive"),
        ({"ref": "positive", "statistic": "x"}, "no plugin provides it"),
        ({"ref": "own"}, "is the cache's own reference"),
        ({"ref": "nowhere"}, "--ref .*nowhere: no such folder"),
        ({"ref": "words"}, "its tokenizer is not the one the cache was built with.*id 3 is"),
        ({"ref": "wide"}, "has 400 logits where the cache's reference has"),
        ({"ref": "short"}, r"takes 12 tokens, \d+ of 48 pairs are longer"),
        ({"positive_prompt": "good " * 200, "negative_prompt": "bad"}, "48 of 48 pairs are longer.*shorter"),
        ({"statistic": "wrong"}, "wrong has values for"),
        ({"statistic": "surprisle"}, "did you mean 'surprisal'"),
        ({"statistic": "nothing"}, "is not a tdpo.Statistic"),
        ({"statistic": "prompt-embedding", "set": {"last": "0"}}, "last=0 is out of range"),
        ({"statistic": "prompt-embedding", "set": {"lost": "1"}}, "did you mean 'last'"),
    ],
)
def test_what_cannot_be_added_is_said_in_a_line_and_leaves_nothing(
    tmp_path, mine, models, reference, plugin, options, message
):
    others = {
        "own": reference,
        "words": tmp_path / "words",
        "wide": tmp_path / "wide",
        "short": tmp_path / "short",
    }
    if options.get("ref") == "words":
        tokenizer = make_tokenizer(extra=["<sep>"])
        make_model(len(tokenizer)).save_pretrained(others["words"])
        tokenizer.save_pretrained(others["words"])
    if options.get("ref") in ("wide", "short"):
        more = {"max_position_embeddings": 12} if options["ref"] == "short" else {}
        vocab_size = 400 if options["ref"] == "wide" else len(make_tokenizer())
        make_model(vocab_size, **more).save_pretrained(others[options["ref"]])
        make_tokenizer().save_pretrained(others[options["ref"]])
    named = {
        key: str(others.get(value, models / value)) if key in ("ref", "positive", "negative") else value
        for key, value in options.items()
    }
    before = (mine / "manifest.json").read_bytes()
    with pytest.raises(tdpo.TdpoError, match=message) as caught:
        add(mine, "x", **named)
    assert "\n" not in str(caught.value)
    assert (mine / "manifest.json").read_bytes() == before
    assert not list(mine.glob("scores/*"))


def test_an_unfinished_cache_is_finished_first(mine, models):
    text = json.loads((mine / "manifest.json").read_text())
    text["complete"] = False
    (mine / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(tdpo.CacheError, match="has not ended"):
        add(mine, "x", ref=models / "positive")


def test_a_reference_that_changed_since_is_not_sampled_again(tmp_path, cache, reference, models):
    home = tmp_path / "home"
    shutil.copytree(models / "positive", home / "model")
    folder = shutil.copytree(cache, home / "cache")
    text = json.loads((folder / "manifest.json").read_text())
    text["provenance"]["reference"] = "model"
    (folder / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(tdpo.TdpoError, match=r"is no longer the reference that .* was built from"):
        add(folder, "larger", head=16)
    # Named where it is now, it is known by its weights.
    add(folder, "larger", ref=reference, head=16)
    assert manifest(folder)["scores"]["larger"]["kind"] == "sample"


def test_building_again_over_it_takes_the_scores_along(mine, reference, pairs):
    add(mine, "larger", head=16)
    (mine / "scores" / "notes.txt").write_text("mine")
    tdpo.build_cache(reference, pairs, mine, shard_rows=30, overwrite=True, quiet=True)
    assert [path.name for path in (mine / "scores").iterdir()] == ["notes.txt"]
    assert "scores" not in manifest(mine)


def test_resuming_the_base_keeps_the_scores(mine, reference, pairs):
    add(mine, "larger", head=16)
    (mine / "pairs-00001.parquet").unlink()
    tdpo.build_cache(reference, pairs, mine, shard_rows=20, quiet=True)
    assert tdpo.verify_cache(mine, quiet=True).ok
    assert list(manifest(mine)["scores"]) == ["larger"]


def test_duckdb_joins_scores_to_pairs(mine, models):
    add(mine, "tis", positive=models / "positive", negative=models / "negative")
    query = f"""
        select count(*), bool_and(len(p.chosen_ids) = len(s.chosen_positive_logp)),
               max(list_max(s.chosen_positive_logp))
        from '{mine}/pairs-*.parquet' p join '{mine}/scores/tis-*.parquet' s using (pair_id)
    """
    ((count, equal, highest),) = duckdb.sql(query).fetchall()
    assert (count, equal) == (48, True)
    assert highest <= 0


def test_the_command_line_says_what_was_added(mine, models):
    common = ["cache", "add", mine, "--name", "second", "--ref", models / "positive"]
    shown = json.loads(run_tdpo(*common, "--json").stdout)
    assert shown == {
        "name": "second",
        "kind": "reference",
        "columns": {"ref_logp": "token"},
        "rows": 48,
        "bytes": sum(path.stat().st_size for path in (mine / "scores").iterdir()),
        "complete": True,
    }
    listed = json.loads(run_tdpo("cache", "info", mine, "--json").stdout)
    assert listed["scores"]["second"]["kind"] == "reference"


def test_a_reader_survives_pickling_and_reads_in_any_order(mine, models):
    scores = pickle.loads(pickle.dumps(add(mine, "second", ref=models / "positive")))
    pairs = [record.pair for record in tdpo.open_cache(mine)]
    forward, backward = scores.read(pairs), scores.read(pairs[::-1])
    for name, values in forward.items():
        for one, other in zip(values, backward[name][::-1], strict=True):
            np.testing.assert_array_equal(one, other)


# Faults that verify must find.


@pytest.fixture(scope="module")
def second(tmp_path_factory, cache, models):
    folder = shutil.copytree(cache, tmp_path_factory.mktemp("second") / "cache")
    add(folder, "second", ref=models / "positive", head=2, tail=2)
    return folder


@pytest.fixture
def added(tmp_path, second):
    """A copy of the cache with a second reference."""
    return shutil.copytree(second, tmp_path / "cache")


def faults(folder):
    return "\n".join(map(str, tdpo.verify_cache(folder, quiet=True).faults))


def rewritten(folder, change):
    """Replace the first score file by one with another content, and enter that into the ledger."""
    path = folder / "scores" / "second-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    document = manifest(folder)
    entry = document["scores"]["second"]["shards"][0]
    entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(document))


def with_values(table, column, change):
    rows = table.column(column).to_pylist()
    change(rows)
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type))


def test_verify_finds_a_flipped_byte_a_missing_file_and_one_too_many(added):
    path = added / "scores" / "second-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    (added / "scores" / "second-00001.parquet").unlink()
    shutil.copy(added / "scores" / "second-00002.parquet", added / "scores" / "other-00002.parquet")
    found = faults(added)
    assert "scores/second-00000.parquet: is damaged, its sha256 differs" in found
    assert "scores/second-00001.parquet: is missing" in found
    assert "scores/other-00002.parquet is in no ledger" in found


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("chosen_ref_logp", lambda rows: rows[3].__setitem__(0, float("nan")), "is not finite"),
        ("rejected_ref_logp", lambda rows: rows[3].__setitem__(0, 0.5), "is no log-probability"),
        ("chosen_ref_logp", lambda rows: rows[3].pop(), "values instead of"),
        ("chosen_dist_ids", lambda rows: rows[3].__setitem__(0, 5000), "is not below"),
        ("pair_id", lambda rows: rows.__setitem__(3, "0" * 32), "is no pair of the base's shard"),
        ("pair_id", lambda rows: rows.__setitem__(3, rows[4]), "is there more than once"),
        ("row", lambda rows: rows.__setitem__(3, 700), "the base has"),
    ],
)
def test_verify_finds_values_that_cannot_be(added, column, change, message):
    rewritten(added, lambda table: with_values(table, column, change))
    assert message in faults(added)


def test_verify_finds_that_a_column_is_not_there(added):
    rewritten(added, lambda table: table.drop_columns(["chosen_ref_logp"]))
    assert "chosen_ref_logp: the column is missing" in faults(added)


def test_verify_finds_rows_that_are_not_there(added):
    rewritten(added, lambda table: table.slice(5, 10))
    assert "row 0: pair_id: 10 pairs of the shard are not there" in faults(added)
    assert "holds 10 rows, the ledger says 20" in faults(added)


def test_rows_in_another_order_are_still_found_by_their_id(added):
    pairs = [record.pair for record in tdpo.open_cache(added)]
    before = tdpo.open_scores(added, "second").read(pairs)
    rewritten(added, lambda table: table.take(list(range(len(table)))[::-1]))
    after = tdpo.open_scores(added, "second").read(pairs)
    for name, values in before.items():
        for one, other in zip(values, after[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_scores_that_miss_pairs_are_refused(added):
    document = manifest(added)
    document["scores"]["second"]["shards"].pop()
    (added / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(tdpo.CacheError, match=r"cover 40 of 48 pairs.*tdpo cache add"):
        tdpo.open_scores(added, "second")
    assert "cover 40 of 48 pairs" in faults(added)


def test_a_pair_of_another_cache_has_no_scores(added):
    from tdpo.cache.pairs import Pair

    with pytest.raises(tdpo.CacheError, match="have no row for the pair of row 3"):
        tdpo.open_scores(added, "second").read([Pair.make(3, [1], [2], [3])])


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one.update(shards=[{**one["shards"][0], "file": "../x.parquet"}]),
        lambda one: one.update(columns={}),
        lambda one: one.update(complete="yes"),
        lambda one: one["columns"]["ref_logp"].update(shape="matrix"),
        lambda one: one["columns"]["ref_logp"].update(width=-1) or one["columns"]["dist_ids"].update(width=0),
        lambda one: one.update(shards=one["shards"][::-1]),
        lambda one: one["shards"][0].update(sha256="x"),
        lambda one: one.pop("identity"),
    ],
)
def test_a_damaged_entry_of_the_manifest_is_one_line(added, damage):
    document = manifest(added)
    damage(document["scores"]["second"])
    (added / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(tdpo.CacheError, match=r"manifest\.json is damaged: ") as caught:
        tdpo.open_cache(added)
    assert "\n" not in str(caught.value)


def test_two_writers_take_turns(added, models):
    from tdpo.cache.scores.writer import ScoreWriter

    asked = tdpo.open_scores(added, "second").scores
    with (
        ScoreWriter(added, "second", dataclasses.replace(asked)),
        pytest.raises(tdpo.CacheError, match="is being written by"),
    ):
        add(added, "third", ref=models / "negative")


def test_a_remote_cache_is_added_to(cache, models):
    """In fsspec's memory file system, which stands for any other."""
    import fsspec

    store = fsspec.filesystem("memory")
    for path in cache.rglob("*"):
        if path.is_file():
            store.pipe(f"/add-test/{path.relative_to(cache)}", path.read_bytes())
    try:
        scores = add("memory://add-test", "second", ref=models / "positive")
        pairs = [record.pair for record in tdpo.open_cache("memory://add-test")]
        assert len(scores.read(pairs)["chosen_ref_logp"]) == 48
        assert tdpo.verify_cache("memory://add-test", quiet=True).ok
        assert len(store.ls("/add-test/scores")) == 3
    finally:
        store.rm("/add-test", recursive=True)


def test_statistics_are_listed_and_described(tmp_path, plugin):
    from click.testing import CliRunner

    from tdpo.core.cli import tdpo as command

    listed = json.loads(CliRunner().invoke(command, ["plugins", "list", "--json"]).output)
    row = next(row for row in listed if row["name"] == "surprisal")
    assert (row["kind"], row["distribution"]) == ("statistic", "added 1.0")
    text = CliRunner().invoke(command, ["plugins", "describe", "prompt-embedding"]).output
    for part in ("pair, float32: [d] mean last hidden state", "last", "default 1000; > 0"):
        assert part in text
    described = json.loads(CliRunner().invoke(command, ["plugins", "describe", "lengths", "--json"]).output)
    assert described["columns"]["first"]["width"] == 2
