"""``tdpo cache verify``: a healthy cache passes, and whatever is changed in one is found and named."""

import hashlib
import json
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import make_model, run_tdpo

import tdpo
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.schema import parquet_options
from tdpo.cache.verify import SHOWN
from tdpo.cache.writer import CacheWriter

FIRST = "pairs-00000.parquet"


@pytest.fixture
def copy(tmp_path, cache):
    """A copy of the cache to spoil."""
    return shutil.copytree(cache, tmp_path / "copy")


def verify(folder, **options):
    return tdpo.verify_cache(folder, quiet=True, **options)


def change_manifest(folder, change):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rewrite(folder, change, name=FIRST):
    """Change a shard's columns, given as lists of rows, and make the ledger fit the new file."""
    path = folder / name
    table = pq.read_table(path)
    columns = {column: table.column(column).to_pylist() for column in table.column_names}
    changed = change(columns)
    schema = changed if isinstance(changed, pa.Schema) else table.schema
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    pq.write_table(table, path, row_group_size=8, **parquet_options(schema))
    enter(folder, name)


def enter(folder, name=FIRST, **entry):
    """Enter a shard's file into the ledger as it is."""
    content = (folder / name).read_bytes()
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def change(document):
        [shard] = [shard for shard in document["shards"] if shard["file"] == name]
        shard |= entry
        for key in ("bytes", "rows", "prompt_tokens", "completion_tokens"):
            document["totals"][key] = sum(shard[key] for shard in document["shards"])

    change_manifest(folder, change)


def only_fault(folder):
    report = verify(folder)
    assert len(report.faults) == 1, str(report)
    return report.faults[0]


def test_a_healthy_cache_passes(cache):
    report = verify(cache)
    assert report.ok
    assert str(report).endswith("no faults in 48 pairs, 708 completion tokens, 3 shards"), str(report)
    assert (report.rows, report.shards, report.rescored) == (48, 3, None)


@pytest.mark.parametrize(
    "options", [{"head": 10_000}, {"head": 0, "tail": 0}, {"head": 0, "tail": 5}, {"head": 3, "tail": 0}]
)
def test_every_shape_of_statistics_passes(tmp_path, reference, pairs, options):
    tdpo.build_cache(reference, pairs, tmp_path / "c", limit=12, quiet=True, **options)
    report = verify(tmp_path / "c", rescore=4)
    assert report.ok, str(report)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_reference_in_low_precision_passes(tmp_path, reference, pairs, dtype):
    tdpo.build_cache(reference, pairs, tmp_path / "c", limit=12, ref_dtype=dtype, batch_tokens=20, quiet=True)
    report = verify(tmp_path / "c", rescore=12)
    assert report.ok, str(report)
    assert report.rescored.tolerance == 0.5


def test_any_byte_flipped_in_a_shard_is_found(copy):
    rng = random.Random(0)
    for name in [f"pairs-{i:05d}.parquet" for i in range(3)]:
        whole = (copy / name).read_bytes()
        size = len(whole)
        footer = size - 8 - int.from_bytes(whole[-8:-4], "little")
        places = {0, 3, size - 1, size - 5, *rng.sample(range(size), 12), *rng.sample(range(footer, size), 6)}
        for place in places:
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(spoilt)
            fault = only_fault(copy)
            assert (fault.file, "sha256" in fault.what) == (name, True), place
        (copy / name).write_bytes(whole)
    assert verify(copy).ok


def swap(document, key):
    a, b = document["shards"][:2]
    a[key], b[key] = b[key], a[key]


MANIFEST_CHANGES = {
    "count of prompt tokens": (
        lambda d: d["shards"][0].update(prompt_tokens=1),
        r"holds \d+ prompt_tokens, the ledger says 1",
    ),
    "count of completion tokens": (
        lambda d: d["shards"][2].update(completion_tokens=7),
        r"pairs-00002.*holds \d+ completion_tokens, the ledger says 7",
    ),
    "rows": (lambda d: d["shards"][0].update(rows=19), r"entry of pairs-00000.parquet keeps 19 and skips 0"),
    "total": (lambda d: d["totals"].update(rows=47), r"totals.rows is 47, the ledger adds up to 48"),
    "no totals": (lambda d: d.pop("totals"), r"totals.bytes is null, the ledger adds up to \d+"),
    "bytes": (
        lambda d: d["shards"][1].update(bytes=5),
        r"pairs-00001.parquet: has [\d,]+ bytes instead of 5",
    ),
    "checksum": (
        lambda d: d["shards"][1].update(sha256="0" * 64),
        r"pairs-00001.parquet: is damaged, its sha256 is not the ledger's",
    ),
    "swapped files": (lambda d: swap(d, "file"), r"pairs-0000[01].parquet: has [\d,]+ bytes instead"),
    "swapped source rows": (lambda d: swap(d, "source_rows"), r"covers the source rows \[20, 40\], shard 0"),
    "a file twice": (
        lambda d: d["shards"][1].update(file=FIRST),
        r"pairs-00000.parquet is in the ledger more than once",
    ),
    "source rows": (lambda d: d["shards"][2].update(source_rows=[40, 47]), r"shard 2 covers \[40, 48\]"),
    "more source rows": (lambda d: d.update(source_rows=49), r"keeps 8 and skips 0 of 9 source rows"),
    "skipped rows": (
        lambda d: d["shards"][2].update(skipped={"empty": {"count": 1, "first_rows": [3]}}),
        r'has "empty" rows outside of its source rows',
    ),
    "head": (
        lambda d: d["identity"]["statistics"].update(head=9, tail=7),
        r"its metadata tdpo.head is 8, the manifest says 9",
    ),
    "vocabulary": (
        lambda d: d["identity"]["statistics"].update(vocab_size=100),
        r"its metadata tdpo.vocab_size is \d+, the manifest says 100",
    ),
    "statistics": (
        lambda d: d["identity"]["statistics"].update(entropy=False),
        r"chosen_ref_entropy: is no column of a cache with these statistics",
    ),
    "not complete": (lambda d: d.update(complete=False), r"not marked complete"),
    "unfinished": (
        lambda d: d.update(complete=False, shards=d["shards"][:1]),
        r"2 of 3 shards missing: run the same build command again",
    ),
}


@pytest.mark.parametrize("name", MANIFEST_CHANGES)
def test_a_changed_manifest_is_found(copy, name):
    change, expected = MANIFEST_CHANGES[name]
    change_manifest(copy, change)
    report = verify(copy)
    assert not report.ok
    assert re.search(expected, str(report)), str(report)


def test_a_missing_file_is_found(copy):
    (copy / FIRST).unlink()
    fault = only_fault(copy)
    assert fault.file == FIRST
    assert fault.what == "is missing: restore it, or run the same build command again"


def test_a_file_that_readers_would_take_for_a_shard_is_found_and_others_are_ignored(copy):
    for name in ("notes.txt", "pairs-00009.parquet.tmp", ".lock", "scores.parquet"):
        (copy / name).write_bytes(b"x")
    assert verify(copy).ok
    shutil.copy(copy / FIRST, copy / "pairs-00003.parquet")
    fault = only_fault(copy)
    assert (fault.file, fault.what[:32]) == ("manifest.json", "pairs-00003.parquet is in the fo")


def test_a_shard_that_is_no_parquet_file_is_found_though_its_checksum_fits(copy):
    (copy / FIRST).write_bytes(b"PAR1, not")
    enter(copy)
    assert only_fault(copy).what.startswith("cannot be read")


def set_value(column, row, index, value):
    def change(columns):
        columns[column][row][index] = value(columns[column][row]) if callable(value) else value

    return change


def put_tail_into_head(columns):
    ids, logp = columns["rejected_dist_ids"][3], columns["rejected_dist_logp"][3]
    ids[16 + 9], logp[16 + 9] = ids[16 + 7], logp[16 + 7]


def swap_in_head(columns):
    for column in ("chosen_dist_ids", "chosen_dist_logp"):
        values = columns[column][3]
        values[0], values[5] = values[5], values[0]


def shift_logps(columns):
    """The off-by-one of scoring at the token instead of before it."""
    columns["chosen_ref_logp"] = [[*row[1:], row[0]] for row in columns["chosen_ref_logp"]]


def swap_rows(columns):
    for values in columns.values():
        values[3], values[4] = values[4], values[3]


VALUE_CHANGES = {
    "positive log-prob": (
        set_value("chosen_ref_logp", 3, 0, 0.5),
        "row 3: chosen_ref_logp: token 0: 0.5, a log-probability is finite and at most 0",
    ),
    "NaN": (set_value("chosen_ref_logp", 3, 0, float("nan")), "row 3: chosen_ref_logp: token 0: nan, a log-"),
    "infinite": (
        set_value("rejected_dist_logp", 3, 15, np.float16("-inf")),
        "row 3: rejected_dist_logp: token 0, entry 15: -inf, a log-probability is finite",
    ),
    "entropy": (
        set_value("chosen_ref_entropy", 3, 0, np.float16(6)),
        "row 3: chosen_ref_entropy: token 0: 6, an entropy lies in 0 ..",
    ),
    "negative entropy": (
        set_value("rejected_ref_entropy", 3, 0, np.float16(-1)),
        "row 3: rejected_ref_entropy: token 0: -1, an entropy lies in 0 ..",
    ),
    "entropy that float16 cannot say": (
        set_value("chosen_ref_entropy", 3, 0, 1.0001),
        "row 3: chosen_ref_entropy: token 0: 1.0001, is no float16 value",
    ),
    "log-prob that float16 cannot say": (
        set_value("rejected_dist_logp", 3, 17, lambda v: v[17] * (1 + 2**-14)),
        ", is no float16 value",
    ),
    "id beyond the vocabulary": (
        set_value("rejected_dist_ids", 3, 17, 99_999),
        "row 3: rejected_dist_ids: token 1, entry 1: 99999, an id lies in 0 ..",
    ),
    "token beyond the vocabulary": (
        set_value("prompt_ids", 3, 0, 99_999),
        "row 3: prompt_ids: token 0: 99999, an id lies in 0 ..",
    ),
    "negative token": (
        set_value("chosen_ids", 3, 0, -1),
        "row 3: chosen_ids: token 0: -1, an id lies in 0 ..",
    ),
    "another token": (
        set_value("prompt_ids", 3, 0, lambda ids: (ids[0] + 1) % 50),
        "row 3: pair_id: is '",
    ),
    "pair_id": (
        lambda c: c["pair_id"].__setitem__(3, "0" * 32),
        "row 3: pair_id: is '00000000000000000000000000000000', its tokens have the id '",
    ),
    "lengths": (lambda c: c["chosen_ref_logp"][3].pop(), "row 3: chosen_ref_logp: holds "),
    "entries": (lambda c: c["rejected_dist_ids"][3].pop(), "row 3: rejected_dist_ids: holds "),
    "no completion": (
        lambda c: c["chosen_ids"][3].clear(),
        "row 3: chosen_ids: the completion has no tokens",
    ),
    "rows of the file": (
        lambda c: [values.pop() for values in c.values()],
        "pairs-00000.parquet: holds 19 rows, the ledger says 20",
    ),
    "unsorted head": (
        swap_in_head,
        "the head is not sorted, likeliest first",
    ),
    "draw inside the head": (put_tail_into_head, "row 3: rejected_dist_ids: token 1, entry 9: "),
    "repeat in the head": (
        lambda c: c["chosen_dist_ids"][3].__setitem__(1, c["chosen_dist_ids"][3][0]),
        "row 3: chosen_dist_ids: token 0: the head lists a token twice",
    ),
    "probabilities above 1": (
        lambda c: c["chosen_dist_logp"][3].__setitem__(slice(8), [np.float16(-0.1)] * 8),
        "the sum of the entries' probabilities, is above 1",
    ),
    "likely draw": (
        set_value("chosen_dist_logp", 3, 8, np.float16(-0.5)),
        "row 3: chosen_dist_logp: token 0, entry 8: -0.5, a draw from the tail is likelier than the head's",
    ),
    "shifted log-probs": (shift_logps, "ref_logp says otherwise of the same token"),
    "order of rows": (swap_rows, "row 3: row: comes after row 4: rows must ascend"),
    "a row of another shard": (
        lambda c: c["row"].__setitem__(19, 25),
        "row 25: row: is not among the shard's source rows 0 .. 19",
    ),
    "a negative row": (lambda c: c["row"].__setitem__(0, -4), "row -4: row: is not among the shard's"),
}


@pytest.mark.parametrize("name", VALUE_CHANGES)
def test_a_wrong_value_is_found_though_the_checksum_fits(copy, name):
    change, expected = VALUE_CHANGES[name]
    rewrite(copy, change)
    report = verify(copy)
    assert {fault.file for fault in report.faults} == {FIRST}
    assert expected in str(report), str(report)


def test_a_rewrite_that_changes_nothing_is_no_fault(copy):
    rewrite(copy, lambda columns: None)
    assert verify(copy).ok


def test_another_schema_is_found(copy):
    def wider(columns):
        schema = pq.read_schema(copy / FIRST)
        at = schema.get_field_index("chosen_ref_entropy")
        return schema.set(at, pa.field("chosen_ref_entropy", pa.list_(pa.float64())))

    rewrite(copy, wider)
    fault = only_fault(copy)
    assert fault.column == "chosen_ref_entropy"
    assert fault.what == (
        "is of type list<element: double> (nullable) instead of list<element: float not null>"
    )
    rewrite(copy, lambda columns: pq.read_schema(copy / FIRST).remove(5))
    assert "chosen_ref_logp: the column is missing" in str(verify(copy))


def test_every_fault_is_counted_and_the_first_of_each_file_are_told(tmp_path):
    def side(logp):
        return SideStatistics(np.full(1, logp, dtype=np.float32))

    statistics = {"entropy": False, "head": 0, "tail": 0, "seed": 0, "vocab_size": 50}
    with CacheWriter(tmp_path / "c", {"statistics": statistics}, {}, source_rows=60, shard_rows=50) as writer:
        for index in range(2):
            rows = writer.source_rows(index)
            pairs = [ScoredPair(Pair.make(row, [1], [row % 50], [2]), side(1), side(-1)) for row in rows]
            writer.write_shard(index, pairs, {})
        writer.finish()
    report = verify(tmp_path / "c")
    assert len(report.faults) == SHOWN + 10
    assert report.more == {FIRST: 50 - SHOWN}
    assert f"{FIRST}: 30 more faults" in str(report)
    assert "60 faults in 60 pairs" in str(report)


def test_the_command_line(tmp_path, cache, copy):
    result = run_tdpo("cache", "verify", cache)
    assert "no faults in 48 pairs" in result.stdout
    assert json.loads(run_tdpo("cache", "verify", cache, "--json").stdout)["ok"] is True
    rewrite(copy, VALUE_CHANGES["positive log-prob"][0])
    result = run_tdpo("cache", "verify", copy, check=False)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{FIRST}: {VALUE_CHANGES['positive log-prob'][1]}\n")
    result = run_tdpo("cache", "verify", "--json", cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no cache at tdpo-cache" in result.stderr
    copy.rename(tmp_path / "tdpo-cache")
    result = run_tdpo("cache", "verify", "--json", cwd=tmp_path, check=False)
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (1, False)
    fault = report["faults"][0]
    assert (fault["file"], fault["row"], fault["column"]) == (FIRST, 3, "chosen_ref_logp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ref", "model"], "--rescore"),
        (["--rescore", "-1"], "--rescore"),
        (["--rescore", "2", "--ref", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_one_line(cache, options, message):
    result = run_tdpo("cache", "verify", cache, *options, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_reference_says_the_same_again(cache, reference):
    report = verify(cache, rescore=100)
    assert report.ok, str(report)
    found = report.rescored
    sides = [one.side(side) for one in tdpo.open_cache(cache) for side in ("chosen", "rejected")]
    drawn = sum(int((side.dist_logp[:, 8:] > -np.inf).sum()) for side in sides)
    assert (found.pairs, found.tokens, found.draws) == (48, 708, drawn)
    assert found.ref_logp < 1e-4
    assert found.ref_entropy < 1e-2
    assert found.dist < 1e-1
    assert found.draws_alike > 0.99 * found.draws
    assert f"48 pairs, 708 tokens, with {reference}" in str(report)
    assert verify(cache, rescore=3, ref=reference).rescored.pairs == 3


def test_another_model_does_not_say_the_same(tmp_path, cache):
    vocab_size = tdpo.open_cache(cache).vocab_size
    make_model(vocab_size, seed=1).save_pretrained(tmp_path / "other")
    result = run_tdpo("cache", "verify", cache, "--rescore", 2, "--ref", tmp_path / "other", check=False)
    assert result.returncode == 1
    assert re.search(
        r"pairs-0000\d.parquet: row \d+: chosen_ref_logp: token \d+ differs by [\d.]+ nats: "
        r"-[\d.]+ in the cache, -[\d.]+ scored again \(tolerance 0.001\)",
        result.stdout,
    )
    for column in ("ref_entropy", "dist_logp"):
        assert column in result.stdout
    assert re.search(r"ref_logp     differs by at most [\d.]+ nats", result.stdout)


@pytest.mark.parametrize("options", [{"vocab_size": 50}, {"vocab_size": None, "max_position_embeddings": 4}])
def test_a_model_that_cannot_score_the_cache_is_refused(tmp_path, cache, options):
    options = {**options, "vocab_size": options["vocab_size"] or tdpo.open_cache(cache).vocab_size}
    make_model(**options).save_pretrained(tmp_path / "other")
    with pytest.raises(tdpo.TdpoError, match=r"--ref .*; give the model that the cache was built with"):
        verify(cache, rescore=2, ref=tmp_path / "other")


def swap_for_an_unlisted_token(columns):
    """In place of the second likeliest token, one that is nowhere near."""
    ids = columns["chosen_dist_ids"][3]
    ids[1] = next(i for i in range(100) if i not in ids[:16] and i != columns["chosen_ids"][3][0])


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("rejected_ref_entropy", set_value("rejected_ref_entropy", 3, 0, lambda v: np.float16(v[0] + 0.05))),
        ("chosen_dist_logp", set_value("chosen_dist_logp", 3, 15, lambda v: np.float16(v[15] - 0.05))),
        ("chosen_dist_logp", swap_for_an_unlisted_token),
    ],
)
def test_a_plausible_value_that_the_reference_never_said_is_found(copy, column, change):
    rewrite(copy, change)
    assert verify(copy).ok
    report = verify(copy, rescore=48)
    [fault] = report.faults
    assert (fault.file, fault.row, fault.column) == (FIRST, 3, column)


def test_a_log_prob_that_the_reference_never_said_is_found(tmp_path, reference, pairs):
    tdpo.build_cache(reference, pairs, tmp_path / "c", head=0, tail=0, limit=12, quiet=True)
    rewrite(tmp_path / "c", set_value("chosen_ref_logp", 5, 0, lambda values: values[0] - 0.01))
    assert verify(tmp_path / "c").ok
    [fault] = verify(tmp_path / "c", rescore=12).faults
    assert (fault.row, fault.column) == (5, "chosen_ref_logp")
    assert "token 0 differs by 0.01 nats" in fault.what


def test_shards_with_faults_are_not_scored_again(copy):
    rewrite(copy, VALUE_CHANGES["NaN"][0])
    report = verify(copy, rescore=2)
    assert report.rescored is None
    assert "rescored     no pairs" in str(report)


def test_finished_shards_of_an_unfinished_build_are_scored_again(copy):
    change_manifest(copy, MANIFEST_CHANGES["unfinished"][0])
    (copy / "pairs-00001.parquet").unlink()
    (copy / "pairs-00002.parquet").unlink()
    report = verify(copy, rescore=2)
    assert report.rescored.pairs == 2
    assert not report.ok
