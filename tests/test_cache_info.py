"""`tdpo cache info`: what a cache holds, told cheaply and truly."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import tdpo
from tdpo.cache import summary
from tdpo.cache.errors import CacheError
from tdpo.cache.pairs import SIDES
from tdpo.cache.summary import Spread, summarise
from tdpo.core.cli import tdpo as command_line


def info(*arguments):
    result = CliRunner().invoke(command_line, ["cache", "info", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200))
def test_a_histogram_holds_every_whole_number_once(values):
    spread = Spread.of(np.array(values))
    assert sum(spread.counts) == len(values)
    for left, right, count in zip(spread.edges, spread.edges[1:], spread.counts, strict=False):
        assert count == sum(left <= value < right for value in values)
        assert left == int(left)
    assert len(spread.counts) <= 2 * summary.BARS
    assert (spread.minimum, spread.maximum) == (min(values), max(values))
    assert spread.median == np.median(values)


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=200))
def test_a_histogram_holds_every_number_once(values):
    spread = Spread.of(np.array(values, dtype=np.float32))
    assert sum(spread.counts) == len(values)
    assert spread.edges[0] <= min(values) + 1e-6
    assert spread.edges[-1] >= max(values) - 1e-6


def test_figures_are_those_of_the_pairs(cache):
    reader = tdpo.open_cache(cache)
    found = summarise(reader, statistics=True)
    pairs = list(reader)
    assert found.pairs == len(pairs) == 48
    assert found.shards == (3, 3)
    for part in ("prompt", *SIDES):
        lengths = [len(getattr(one.pair, f"{part}_ids")) for one in pairs]
        spread = found.tokens[part]
        assert (spread.minimum, spread.maximum) == (min(lengths), max(lengths))
        assert spread.mean == pytest.approx(np.mean(lengths))
    entropy = np.concatenate([one.side(side).ref_entropy for one in pairs for side in SIDES])
    assert found.entropy.mean == pytest.approx(entropy.mean(dtype=np.float64), rel=1e-6)
    head = [np.exp(one.side(side).dist_logp[:, :8].astype(float)).sum(1) for one in pairs for side in SIDES]
    assert found.tail_mass.mean == pytest.approx(1 - np.concatenate(head).mean(), rel=1e-4)


def test_bytes_by_column_add_up_to_the_files(cache):
    reader = tdpo.open_cache(cache)
    found = summarise(reader)
    per_token = reader.manifest.bytes / reader.completion_tokens
    assert sum(found.column_bytes.values()) == pytest.approx(per_token)
    assert {"pair_id", "prompt_ids", "chosen_dist_ids", "footer"} <= found.column_bytes.keys()
    assert found.entropy is found.tail_mass is None


def test_of_a_large_cache_only_a_part_is_read(cache, monkeypatch):
    monkeypatch.setattr(summary, "SHARDS", 2)
    found = summarise(tdpo.open_cache(cache))
    assert found.shards == (2, 3)
    assert found.pairs < 48


def test_json_is_the_manifest_with_a_summary(cache):
    document = json.loads(info(cache, "--json", "--statistics"))
    manifest = json.loads((cache / "manifest.json").read_text())
    found = document.pop("summary")
    assert document == manifest
    assert found["tokens"]["prompt"]["counts"]
    assert found["entropy"]["mean"] > 0
    assert json.loads(info(cache, "--json"))["summary"].get("entropy") is None


def test_what_people_are_shown(cache, reference):
    text = info(cache, "--statistics")
    weights = json.loads((cache / "manifest.json").read_text())["identity"]["reference"]["weights_sha256"]
    for part in (
        "48 pairs",
        f"reference  {reference}",
        f"weights sha256 {weights[:12]}",
        "tokens of chosen: mean",
        "####",
        "entropy of the reference",
        "probability outside the cached head",
        "chosen_dist_ids",
        "with tdpo ",
        "skipped    none",
    ):
        assert part in text
    assert "\n  resumed" not in text


def test_skipped_rows_resumptions_parts_and_scores_are_told(tmp_path, reference, pairs):
    with pairs.open() as file:
        rows = [json.loads(line) for line in file]
    rows[3]["chosen"] = None
    tdpo.build_cache(reference, rows, tmp_path / "c", quiet=True, shard_rows=16, part="1/2")
    text = info(tmp_path / "c")
    assert "1 missing chosen (rows 3)" in text
    assert "part 1/2" in text
    tdpo.build_cache(reference, rows, tmp_path / "d", quiet=True, shard_rows=16)
    (tmp_path / "d" / "pairs-00001.parquet").unlink()
    tdpo.build_cache(reference, rows, tmp_path / "d", quiet=True, shard_rows=16)
    tdpo.add_statistics(tmp_path / "d", "wide", head=12, tail=4, quiet=True)
    text = info(tmp_path / "d")
    assert "resumed    once, last 20" in text
    assert "scores     wide: sample, " in text


def test_an_unfinished_cache_is_shown_and_an_empty_one(tmp_path, cache):
    shutil.copytree(cache, tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    document = json.loads(path.read_text())
    document["complete"] = False
    del document["shards"][1:]
    path.write_text(json.dumps(document))
    assert "20 pairs, 1 of 3 shards finished" in info(tmp_path / "c")
    document["shards"] = []
    path.write_text(json.dumps(document))
    assert "0 pairs, 0 of 3 shards finished" in info(tmp_path / "c")
    assert json.loads(info(tmp_path / "c", "--json"))["summary"] is None


def test_a_cache_behind_a_url_is_shown(cache):
    import fsspec

    fsspec.filesystem("memory").put(f"{cache}/", "/info/cache/", recursive=True)
    assert info("memory://info/cache").splitlines()[1:] == info(cache).splitlines()[1:]


def test_a_damaged_shard_is_named(tmp_path, cache):
    shutil.copytree(cache, tmp_path / "c")
    shard = tmp_path / "c" / "pairs-00001.parquet"
    shard.write_bytes(b"PAR1" + bytes(shard.stat().st_size - 8) + b"PAR1")
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet cannot be read .*tdpo cache verify"):
        summarise(tdpo.open_cache(tmp_path / "c"))
