"""A cache exported for another trainer: its tokens, sums of its log-probabilities, whole or not at all."""

import json
import math
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import tdpo
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.writer import CacheWriter
from tdpo.core.caching import export as module
from tdpo.core.cli.cache.export import export as command
from tdpo.core.errors import ConfigError

COLUMNS = [
    "pair_id",
    "row",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "ref_chosen_logps",
    "ref_rejected_logps",
]
STATISTICS = {"entropy": False, "head": 0, "tail": 0, "seed": 0, "vocab_size": 100}


def side(rng, tokens):
    return SideStatistics(-rng.exponential(2, tokens).astype(np.float32))


def write_cache(folder, lengths, *, shard_rows=20, shards=None):
    """A cache of pairs whose two completions have these lengths; unfinished where ``shards`` are fewer."""
    rng = np.random.default_rng(0)
    with CacheWriter(
        folder, {"statistics": STATISTICS}, {}, source_rows=len(lengths), shard_rows=shard_rows
    ) as writer:
        for index in range(writer.shards if shards is None else shards):
            scored = []
            for row in writer.source_rows(index):
                chosen, rejected = lengths[row]
                ids = [rng.integers(0, 100, n) for n in (5, chosen, rejected)]
                scored.append(ScoredPair(Pair.make(row, *ids), side(rng, chosen), side(rng, rejected)))
            writer.write_shard(index, scored, {})
        if shards is None:
            writer.finish()
    return folder


def load(folder, format, tmp_path):
    if format == "arrow":
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "hf"))


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl"])
def test_every_format_opens_with_datasets_and_holds_the_caches_pairs(cache, tmp_path, format):
    report = tdpo.export_cache(cache, tmp_path / "out", format=format)
    rows = load(tmp_path / "out", format, tmp_path)
    assert rows.column_names == COLUMNS
    reader = tdpo.open_cache(cache)
    assert len(rows) == len(reader) == report.rows
    for row, record in zip(rows, reader, strict=True):
        assert (row["pair_id"], row["row"]) == (record.pair.pair_id, record.pair.row)
        assert row["prompt_ids"] == record.pair.prompt_ids.tolist()
        for name in ("chosen", "rejected"):
            assert row[f"{name}_ids"] == record.pair.ids(name).tolist()
            exact = np.float32(record.side(name).ref_logp.astype(np.float64).sum())
            assert np.float32(row[f"ref_{name}_logps"]) == exact


def test_sums_of_long_completions_lose_nothing_before_they_are_rounded_once(tmp_path):
    """Summed one by one in float32, 200,000 such values are off by far more than a float32's last digit."""
    write_cache(tmp_path / "cache", [(200_000, 3)])
    tdpo.export_cache(tmp_path / "cache", tmp_path / "out")
    record = tdpo.open_cache(tmp_path / "cache")[0]
    (found,) = pq.read_table(tmp_path / "out" / "train-00000.parquet")["ref_chosen_logps"].to_pylist()
    assert np.float32(found) == np.float32(math.fsum(record.chosen.ref_logp.tolist()))


def test_columns_are_plain_types_that_a_trainer_needs_no_index_for(cache, tmp_path):
    tdpo.export_cache(cache, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "train-00000.parquet")
    kinds = {field.name: field.type for field in schema}
    assert kinds["pair_id"] == pa.string()
    assert kinds["row"] == pa.int64()
    assert kinds["ref_chosen_logps"] == kinds["ref_rejected_logps"] == pa.float32()
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert pa.types.is_list(kinds[name])
        assert kinds[name].value_type == pa.int32()


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_large_export_is_cut_into_files(tmp_path, monkeypatch, format):
    monkeypatch.setattr(module, "_BATCH_PAIRS", 4)
    monkeypatch.setattr(module, "_FILE_BATCHES", 3)
    write_cache(tmp_path / "cache", [(2, 3)] * 30)
    report = tdpo.export_cache(tmp_path / "cache", tmp_path / "out", format=format)
    assert report.files == [f"train-{i:05d}.{format}" for i in range(3)]
    rows = load(tmp_path / "out", format, tmp_path)
    assert rows["row"][:] == list(range(30))


PEAK = """
import pathlib, sys
import tdpo
small, cache, out, format = sys.argv[1:]
tdpo.export_cache(small, out + "-warm-up", format=format)
pathlib.Path("/proc/self/clear_refs").write_text("5")
tdpo.export_cache(cache, out, format=format)
print(next(l for l in pathlib.Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="asks Linux for peak memory")
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_peak_memory_does_not_grow_with_the_cache(tmp_path, format):
    peaks = []
    for rows in (600, 3600):
        cache = write_cache(tmp_path / f"cache-{rows}", [(1000, 1000)] * rows, shard_rows=600)
        out = tmp_path / f"out-{rows}"
        command = [sys.executable, "-c", PEAK, tmp_path / "cache-600", cache, out, format]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(printed.split()[1]) * 1024)
    tokens = 3000 * 2000
    # Of each further token its id and its log-probability pass through: none of it may stay.
    assert peaks[1] - peaks[0] < 8 * tokens / 4


def test_the_report_and_the_mark_say_what_was_written(tmp_path):
    write_cache(tmp_path / "cache", [(2, 3), (7, 1)])
    report = tdpo.export_cache(tmp_path / "cache", tmp_path / "out")
    assert (report.rows, report.completion_tokens, report.longest) == (2, 13, 5 + 7)
    assert report.bytes == (tmp_path / "out" / "train-00000.parquet").stat().st_size
    mark = json.loads((tmp_path / "out" / "tdpo-export.json").read_text())
    assert mark["identity"]["statistics"] == STATISTICS
    assert sorted(os.listdir(tmp_path / "out")) == ["README.md", "tdpo-export.json", "train-00000.parquet"]
    card = (tmp_path / "out" / "README.md").read_text()
    for name in COLUMNS:
        assert f"`{name}`" in card
    assert "the longest has 12 tokens" in card


def test_the_command_prints_a_line_for_people_and_json_for_programs(cache, tmp_path):
    plain = CliRunner().invoke(command, [str(cache), "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert "48 pairs" in plain.output
    asked = [str(cache), "--out", str(tmp_path / "b"), "--format", "jsonl", "--json"]
    found = json.loads(CliRunner().invoke(command, asked, catch_exceptions=False).output)
    assert (found["rows"], found["format"], found["files"]) == (48, "jsonl", ["train-00000.jsonl"])


def test_an_export_is_replaced_only_when_asked(cache, tmp_path):
    tdpo.export_cache(cache, tmp_path / "out", format="jsonl")
    with pytest.raises(ConfigError, match=r"holds an export: .*--overwrite"):
        tdpo.export_cache(cache, tmp_path / "out")
    tdpo.export_cache(cache, tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["README.md", "tdpo-export.json", "train-00000.parquet"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_replaced(cache, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not empty \(it holds thesis.tex\): choose another folder"):
        tdpo.export_cache(cache, tmp_path, overwrite=overwrite)
    with pytest.raises(ConfigError, match="is not empty"):
        tdpo.export_cache(cache, cache, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_empty_folder_may_be_the_target(cache, tmp_path):
    (tmp_path / "out").mkdir()
    assert tdpo.export_cache(cache, tmp_path / "out").rows == 48


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(cache, tmp_path):
    """A shard with a flipped byte is found while it is being read."""
    damaged = shutil.copytree(cache, tmp_path / "cache")
    tdpo.export_cache(cache, tmp_path / "out")
    before = (tmp_path / "out" / "train-00000.parquet").read_bytes()
    shard = damaged / "pairs-00001.parquet"
    names = pq.read_schema(shard).names
    place = pq.read_metadata(shard).row_group(0).column(names.index("rejected_ref_logp"))
    content = bytearray(shard.read_bytes())
    content[place.data_page_offset + place.total_compressed_size - 1] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(tdpo.CacheError, match=r"pairs-00001\.parquet is damaged"):
        tdpo.export_cache(damaged, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "train-00000.parquet").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["cache", "out"]


def test_an_unfinished_cache_is_not_exported(tmp_path):
    write_cache(tmp_path / "cache", [(2, 3)] * 4, shard_rows=2, shards=1)
    with pytest.raises(tdpo.CacheError, match="has not ended, 1 of 2 shards"):
        tdpo.export_cache(tmp_path / "cache", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said_in_a_line(cache, tmp_path):
    (tmp_path / "file").write_text("")
    write_cache(tmp_path / "empty", [])
    cases = [
        ((cache, tmp_path / "out", "csv"), "--format csv: choose one of parquet, arrow, jsonl"),
        ((cache, "s3://bucket/out", "parquet"), "is a URL: export to a local folder"),
        ((cache, tmp_path / "file", "parquet"), "is a file: choose a folder"),
        ((cache, tmp_path / "file" / "out", "parquet"), "a part of the path is a file"),
        ((tmp_path / "empty", tmp_path / "out", "parquet"), "holds no pairs: there is nothing to export"),
        ((tmp_path / "missing", tmp_path / "out", "parquet"), "missing"),
    ]
    for (source, out, kind), message in cases:
        with pytest.raises(tdpo.TdpoError) as caught:
            tdpo.export_cache(source, out, format=kind)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
