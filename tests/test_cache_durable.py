"""Whatever interrupts a build, finished shards stay, and the same command goes on with the rest."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tdpo.cache.errors import CacheError
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.reader import open_cache
from tdpo.cache.writer import CacheWriter

IDENTITY = {
    "reference": {"name": "model"},
    "statistics": {"entropy": False, "head": 2, "tail": 1, "seed": 0, "vocab_size": 50},
}

# Content depends on the row alone, as a real build's does: whoever writes a shard writes the same one.
BUILDER = """
import sys, time
import numpy as np
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.writer import CacheWriter

def scored_pair(row):
    rng = np.random.default_rng(row)
    def side(tokens):
        return SideStatistics(-rng.random(tokens, np.float32), None,
                              rng.integers(0, 50, (tokens, 3)).astype(np.uint32),
                              -rng.random((tokens, 3)).astype(np.float16))
    pair = Pair.make(row, *(rng.integers(0, 50, rng.integers(1, 30)) for _ in range(3)))
    return ScoredPair(pair, side(len(pair.chosen_ids)), side(len(pair.rejected_ids)))

def build(path, identity, pause=0.0):
    with CacheWriter(path, identity, {"by": "test"}, source_rows=40, shard_rows=4) as writer:
        for index in sorted(set(range(writer.shards)) - writer.finished):
            writer.write_shard(index, [scored_pair(row) for row in writer.source_rows(index)], {})
            print(index, flush=True)
            time.sleep(pause)
        writer.finish()
"""
_names: dict = {}
exec(BUILDER, _names)
scored_pair, build = _names["scored_pair"], _names["build"]


def start(script, *arguments, **options):
    """Start another Python that has run BUILDER."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{BUILDER}\n{script}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def content(path):
    """Names and checksums of the shards, and the ledger."""
    shards = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.glob("*.parquet")}
    return shards, json.loads((path / "manifest.json").read_text())["shards"]


def write(writer, index):
    writer.write_shard(index, [scored_pair(row) for row in writer.source_rows(index)], {})


def opened(path, **changes):
    options = {"source_rows": 12, "shard_rows": 4, **changes}
    return CacheWriter(path, options.pop("identity", IDENTITY), {}, **options)


def test_a_killed_build_resumes_to_the_same_content(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    build(whole, IDENTITY)
    builder = start("build(sys.argv[1], eval(sys.argv[2]), 0.05)", killed, IDENTITY)
    for expected in range(3):
        assert builder.stdout.readline() == f"{expected}\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    with pytest.raises(CacheError, match=r"of 10 shards are finished: run the same build command again"):
        open_cache(killed)
    partial = open_cache(killed, allow_incomplete=True)
    assert len(partial) >= 12
    assert partial[11].pair == scored_pair(11).pair
    (killed / "pairs-00009.parquet.tmp").write_bytes(b"PAR1 cut")
    build(killed, IDENTITY)
    assert content(killed) == content(whole)
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole))


@pytest.mark.slow
def test_a_build_killed_at_any_moment_leaves_a_cache_that_resumes(tmp_path):
    build(tmp_path / "whole", IDENTITY)
    for attempt in range(6):
        path = tmp_path / f"{attempt}"
        builder = start("print('ready', flush=True); build(sys.argv[1], eval(sys.argv[2]))", path, IDENTITY)
        builder.stdout.readline()
        time.sleep(0.004 * attempt)
        builder.kill()
        builder.communicate()
        build(path, IDENTITY)
        assert content(path) == content(tmp_path / "whole")


def test_a_finished_cache_is_left_as_it_is(tmp_path):
    build(tmp_path / "c", IDENTITY)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    build(tmp_path / "c", IDENTITY)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()} == before


def test_only_a_lost_shard_is_written_again(tmp_path):
    build(tmp_path / "c", IDENTITY)
    before = content(tmp_path / "c")
    (tmp_path / "c" / "pairs-00003.parquet").unlink()
    (tmp_path / "c" / "pairs-00005.parquet").write_bytes(b"short")
    with pytest.raises(CacheError, match=r"pairs-00003\.parquet is missing.*only that shard"):
        open_cache(tmp_path / "c")
    with CacheWriter(tmp_path / "c", IDENTITY, {}, source_rows=40, shard_rows=4) as writer:
        assert writer.finished == {0, 1, 2, 4, 6, 7, 8, 9}
    with pytest.raises(CacheError, match="8 of 10 shards"):
        open_cache(tmp_path / "c")
    build(tmp_path / "c", IDENTITY)
    assert content(tmp_path / "c") == before


def test_damage_inside_a_shard_is_found_when_it_is_read(tmp_path):
    build(tmp_path / "c", IDENTITY)
    path = tmp_path / "c" / "pairs-00001.parquet"
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    reader = open_cache(tmp_path / "c")
    assert reader[0].pair == scored_pair(0).pair
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet is damaged"):
        reader.read(range(4, 8))
    path.write_bytes(bytes(len(data)))
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet is damaged"):
        len(open_cache(tmp_path / "c").group_sizes)


def test_another_request_is_refused_with_the_differences(tmp_path):
    with opened(tmp_path / "c") as writer:
        write(writer, 0)
    other = {**IDENTITY, "statistics": {**IDENTITY["statistics"], "head": 16}}
    with pytest.raises(CacheError) as caught:
        opened(tmp_path / "c", identity=other, source_rows=13)
    message = str(caught.value)
    assert "statistics.head: the cache has 2, you ask for 16" in message
    assert "source_rows: the cache has 12, you ask for 13" in message
    assert "--overwrite" in message
    assert "--out" in message
    with opened(tmp_path / "c") as writer:
        assert writer.finished == {0}


def test_overwrite_removes_only_what_is_the_caches_own(tmp_path):
    build(tmp_path / "c", IDENTITY)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with opened(tmp_path / "c", overwrite=True) as writer:
        assert writer.finished == set()
        write(writer, 0)
    assert sorted(os.listdir(tmp_path / "c")) == ["manifest.json", "notes.txt", "pairs-00000.parquet"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["photo.jpg", "README.md", "train.parquet"])
def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with pytest.raises(CacheError, match=f"not a cache \\(it holds {name}"):
        opened(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path) == [name]


def test_a_damaged_manifest_stops_a_build_unless_overwritten(tmp_path):
    build(tmp_path / "c", IDENTITY)
    (tmp_path / "c" / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="--overwrite"):
        opened(tmp_path / "c")
    with opened(tmp_path / "c", overwrite=True) as writer:
        assert writer.finished == set()


def test_nothing_half_written_is_left_behind(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(CacheError, match=r"file"):
            opened(path)
    with pytest.raises(CacheError, match="statistics"):
        opened(tmp_path / "c", identity={})
    with pytest.raises(RuntimeError, match="no model"), opened(tmp_path / "deep" / "c"):
        raise RuntimeError("no model")
    assert os.listdir(tmp_path) == ["file"]


def test_a_cache_with_missing_shards_cannot_be_finished(tmp_path):
    with opened(tmp_path / "c") as writer:
        write(writer, 1)
        with pytest.raises(CacheError, match="lacks 2 of 3 shards"):
            writer.finish()
    with pytest.raises(ValueError, match="closed"):
        write(writer, 0)


def test_every_row_is_kept_or_skipped_exactly_once(tmp_path):
    with opened(tmp_path / "c") as writer:
        for kept, skipped in [
            ([0, 1, 2], []),
            ([0, 1, 2, 4], []),
            ([0, 1, 2, 3], [3]),
            ([], [0, 1, 2, 3, 3]),
        ]:
            with pytest.raises(ValueError, match="kept or skipped once"):
                writer.write_shard(0, [scored_pair(row) for row in kept], {"empty": skipped})
        with pytest.raises(IndexError, match="shard 3"):
            writer.write_shard(3, [], {})


def spoilt(**changes):
    one = scored_pair(0)
    for name, value in changes.items():
        setattr(one.chosen, name, value)
    return one


@pytest.mark.parametrize(
    ("one", "error", "said"),
    [
        (
            spoilt(ref_logp=scored_pair(0).chosen.ref_logp * np.nan),
            CacheError,
            "row 0.*chosen ref_logp.*finite",
        ),
        (spoilt(ref_logp=np.zeros(0, np.float32)), ValueError, "chosen ref_logp should be"),
        (spoilt(dist_ids=None), ValueError, "dist_ids should be"),
        (spoilt(ref_entropy=scored_pair(0).chosen.ref_logp), ValueError, "ref_entropy should be None"),
        (spoilt(dist_ids=scored_pair(0).chosen.dist_ids + 50), ValueError, "vocabulary"),
        (
            ScoredPair(Pair.make(0, [1], [], [2]), SideStatistics(np.zeros(0)), SideStatistics(np.zeros(1))),
            ValueError,
            "chosen completion has no tokens",
        ),
    ],
)
def test_statistics_that_would_poison_training_are_refused(tmp_path, one, error, said):
    with opened(tmp_path / "c") as writer, pytest.raises(error, match=said):
        writer.write_shard(0, [one], {"empty": [1, 2, 3]})


def test_a_second_builder_is_told_who_is_building(tmp_path):
    script = """
with CacheWriter(sys.argv[1], eval(sys.argv[2]), {}, source_rows=12, shard_rows=4) as writer:
    print("holding", flush=True)
    sys.stdin.read()
"""
    first = start(script, tmp_path / "c", IDENTITY, stdin=subprocess.PIPE)
    assert first.stdout.readline() == "holding\n"
    with pytest.raises(CacheError, match=rf"being written by process {first.pid} on .*--out"):
        opened(tmp_path / "c", overwrite=True)
    first.kill()  # a dead builder's lock is taken over
    first.communicate()
    with opened(tmp_path / "c") as writer:
        write(writer, 0)
    assert sorted(os.listdir(tmp_path / "c")) == ["manifest.json", "pairs-00000.parquet"]


def test_a_disk_that_refuses_is_one_line_and_finished_shards_stay(tmp_path):
    pytest.importorskip("resource")
    script = """
import resource
from tdpo.cache.errors import CacheError
with CacheWriter(sys.argv[1], eval(sys.argv[2]), {}, source_rows=12, shard_rows=4) as writer:
    writer.write_shard(0, [scored_pair(row) for row in writer.source_rows(0)], {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        writer.write_shard(1, [scored_pair(row) for row in writer.source_rows(1)], {})
    except CacheError as error:
        print(error)
"""
    out, err = start(script, tmp_path / "c", IDENTITY).communicate()
    assert err == ""
    assert out.count("\n") == 1
    assert "cannot write" in out
    assert "pairs-00001.parquet: File too large" in out
    assert sorted(os.listdir(tmp_path / "c")) == ["manifest.json", "pairs-00000.parquet"]
    with opened(tmp_path / "c") as writer:
        assert writer.finished == {0}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="choose a folder"):
        opened(tmp_path / "c")
