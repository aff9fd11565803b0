"""Several processes build the cache that one would; whichever dies, no finished shard is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_tdpo, write_pairs

import tdpo
from tdpo.cache.layout import entry_name
from tdpo.cache.ledger import Part
from tdpo.cache.manifest import Manifest, read_manifest
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.shard import ShardWriter
from tdpo.cache.storage.files import Folder
from tdpo.cache.writer import CacheWriter
from tdpo.core.caching import build as building
from tdpo.core.caching.processes import leader as leading
from tdpo.core.caching.processes.channel import pack, unpack
from tdpo.core.errors import TdpoError
from tdpo.core.launched import Place
from tdpo.core.models import find_model

SHARD_ROWS = 5
SHARDS = 24
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    # This starts one process only. --multi_gpu starts two, and asks for no GPU.
    "accelerate-cpu": [
        *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", SHARDS * SHARD_ROWS, seed=5)


@pytest.fixture(scope="module")
def single(tmp_path_factory, reference, data):
    """The cache that one process builds."""
    folder = tmp_path_factory.mktemp("single") / "cache"
    tdpo.build_cache(reference, data, folder, shard_rows=SHARD_ROWS, quiet=True)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums are added up in the same order whoever scores."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(folder):
    """Every file but the manifest byte for byte; the manifest without who made it when."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["provenance"]
    return manifest, {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("manifest.json", "tdpo.yaml")
    }


def arguments(reference, data, out):
    options = ["--ref", reference, "--dataset", data, "--shard-rows", SHARD_ROWS, "--out", out]
    return ["cache", "build", *options]


@pytest.fixture
def slow_leader(monkeypatch):
    """The leader begins to score only when an event is set, so that there is a share for the follower."""
    opened, go = building.open_scorer, threading.Event()

    def open_scorer(*given):
        scorer = opened(*given)
        assert go.wait(120)
        return scorer

    monkeypatch.setattr(building, "open_scorer", open_scorer)
    return go


@pytest.fixture
def entered(monkeypatch):
    """Shards that a follower finished, in order; and what is done at each."""
    enter, shards = CacheWriter.enter, []

    def spying(self, shard):
        enter(self, shard)
        shards.append(shard.index)
        for act in spying.acts:
            act()

    spying.acts = []
    monkeypatch.setattr(CacheWriter, "enter", spying)
    return shards, spying.acts


@pytest.fixture
def children(monkeypatch):
    """The followers that were started."""
    start, started = leading.start_followers, []

    def spying(*given):
        started.extend(start(*given))
        return started

    monkeypatch.setattr(leading, "start_followers", spying)
    return started


def test_two_processes_give_the_cache_of_one(tmp_path, reference, data, single, slow_leader, entered):
    shards, acts = entered
    acts.append(slow_leader.set)
    tdpo.build_cache(reference, data, tmp_path / "c", shard_rows=SHARD_ROWS, num_processes=2, quiet=True)
    assert shards
    assert content(tmp_path / "c") == content(single)


@pytest.mark.slow
def test_data_that_only_the_leader_has_will_do(tmp_path, reference, data, single, slow_leader, entered):
    import datasets

    shards, acts = entered
    acts.append(slow_leader.set)
    rows = datasets.Dataset.from_list([json.loads(line) for line in data.read_text().splitlines()])
    tdpo.build_cache(reference, rows, tmp_path / "c", shard_rows=SHARD_ROWS, num_processes=2, quiet=True)
    assert shards
    mine, theirs = content(tmp_path / "c")[1], content(single)[1]
    del mine["README.md"], theirs["README.md"]  # shows the data's identity
    assert mine == theirs


def test_a_killed_follower_ends_the_build_and_the_same_command_goes_on(
    tmp_path, reference, data, single, slow_leader, entered, children
):
    shards, acts = entered
    acts.append(lambda: children[0].kill())

    def let_go():
        children[0].wait()
        slow_leader.set()

    acts.append(lambda: threading.Thread(target=let_go).start())
    options = {"shard_rows": SHARD_ROWS, "quiet": True}
    with pytest.raises(TdpoError, match=r"rank 1, one of 2 processes, ended with signal 9: .*same command"):
        tdpo.build_cache(reference, data, tmp_path / "c", num_processes=2, **options)
    assert shards
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("pairs-*.parquet")}
    tdpo.build_cache(reference, data, tmp_path / "c", **options)
    assert content(tmp_path / "c") == content(single)
    for index in shards:
        name = f"pairs-{index:05d}.parquet"
        assert (tmp_path / "c" / name).stat().st_mtime_ns == there[name]


def test_what_a_follower_fails_with_is_the_builds_one_error(
    tmp_path, reference, data, slow_leader, children, monkeypatch
):
    mine = shutil.copytree(reference, tmp_path / "model")
    opened, start = building.open_scorer, leading.start_followers

    def start_followers(*given):
        weights = mine / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        slow_leader.set()
        return start(*given)

    def open_scorer(config, _, identity):
        scorer = opened(config, find_model(str(reference), option="--ref"), identity)
        children[0].wait(120)
        return scorer

    monkeypatch.setattr(leading, "start_followers", start_followers)
    monkeypatch.setattr(building, "open_scorer", open_scorer)
    with pytest.raises(TdpoError, match=r"rank 1: .*the model does not load") as caught:
        tdpo.build_cache(mine, data, tmp_path / "c", shard_rows=SHARD_ROWS, num_processes=2, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_no_follower_is_started_where_nothing_is_left_to_do(reference, data, single, children):
    tdpo.build_cache(reference, data, single, shard_rows=SHARD_ROWS, num_processes=2, quiet=True)
    assert not children


@pytest.mark.slow
def test_several_processes_build_in_an_object_store(tmp_path, reference, data, single, slow_leader, entered):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    import fsspec
    from remote import environment, s3_server

    shards, acts = entered
    acts.append(slow_leader.set)
    options = {"shard_rows": SHARD_ROWS, "num_processes": 2, "quiet": True}
    with s3_server(tmp_path / "log") as variables, environment(variables):
        fsspec.filesystem("s3").mkdir("bucket")
        reader = tdpo.build_cache(reference, data, "s3://bucket/cache", **options)
        assert shards
        assert reader.manifest.shards == tdpo.open_cache(single).manifest.shards
        assert Folder.at("s3://bucket/cache").names() == Folder.at(single).names()


@pytest.mark.slow
def test_a_folder_that_only_the_leader_sees_is_refused(reference, data, slow_leader, children):
    def let_go():
        while not children:
            time.sleep(0.1)
        children[0].wait()
        slow_leader.set()

    threading.Thread(target=let_go, daemon=True).start()
    with pytest.raises(TdpoError, match=r"rank 1: --out memory://mine/cache is not there for this process"):
        tdpo.build_cache(
            reference, data, "memory://mine/cache", shard_rows=SHARD_ROWS, num_processes=2, quiet=True
        )


@pytest.mark.slow
def test_a_killed_leader_takes_its_followers_along_and_loses_no_shard(tmp_path, reference, data, single):
    out = tmp_path / "c"
    command = [sys.executable, "-m", "tdpo", *arguments(reference, data, out), "--num-processes", 2]
    leader = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.glob("pairs-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    followers = psutil.Process(leader.pid).children()
    leader.kill()
    leader.wait()
    assert followers
    assert not psutil.wait_procs(followers, timeout=60)[1]
    assert leader.stderr.read().count(b"Traceback") == 0
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("pairs-*.parquet")}
    kept = {shard.file for shard in read_manifest(Folder.at(out)).shards}
    kept |= {path.name.replace(".entry.json", ".parquet") for path in out.glob("*.entry.json")}
    assert kept
    run_tdpo(*arguments(reference, data, out))
    assert content(out) == content(single)
    for name in kept:
        assert (out / name).stat().st_mtime_ns == whole[name]


@pytest.mark.slow
def test_ctrl_c_is_one_line(tmp_path, reference, data):
    out = tmp_path / "c"
    command = [sys.executable, "-m", "tdpo", *arguments(reference, data, out), "--num-processes", 2]
    leader = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(1)
    os.killpg(leader.pid, signal.SIGINT)
    _, errors = leader.communicate(timeout=120)
    if leader.returncode:  # else it had ended already
        assert leader.returncode == 130
        assert errors.decode().count("tdpo: ") == 1
        assert "Traceback" not in errors.decode()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_starts_the_processes(tmp_path, reference, data, single, launcher):
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "tdpo"]
    command += map(str, arguments(reference, data, tmp_path / "c"))
    environment = {**os.environ, "MASTER_PORT": "0", "HF_HOME": str(tmp_path)}
    for _ in ("built", "found finished") if launcher == "torchrun" else ("built",):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        # Only the first speaks.
        assert done.stdout.count("120 pairs") == 1
        assert done.stderr.count("tokenising") == 1
        assert content(tmp_path / "c") == content(single)


@pytest.mark.slow
def test_an_environment_as_torch_reads_it_is_launcher_enough(tmp_path, reference, data, single):
    def run(source):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tdpo", *arguments(reference, source, tmp_path / "c")]
        shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                list(map(str, command)),
                env={**shared, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        return [(*one.communicate(timeout=300), one.returncode) for one in started]

    (first, errors, code), rank1 = run(tmp_path / "missing.jsonl")
    assert (first, code) == ("", 2)
    assert errors.startswith("tdpo: ")
    assert errors.count("\n") == 1
    assert rank1 == ("", "", 2)
    (first, _, code), rank1 = run(data)
    assert ("120 pairs" in first, code) == (True, 0)
    assert rank1 == ("", "", 0)
    assert content(tmp_path / "c") == content(single)


@pytest.mark.slow
def test_under_a_launcher_an_error_is_told_once(tmp_path, reference):
    command = [sys.executable, "-m", *LAUNCHERS["torchrun"], "-m", "tdpo"]
    command += map(str, arguments(reference, tmp_path / "missing.jsonl", tmp_path / "c"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode
    assert done.stderr.count("tdpo: ") == 1
    assert "missing.jsonl" in done.stderr


def test_a_place_that_cannot_be_is_refused(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TdpoError, match=r"RANK=2, WORLD_SIZE=2.*torchrun"):
        Place.here()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(TdpoError, match="the launcher has started 2 processes; leave it out"):
        tdpo.build_cache("model", "pairs.jsonl", "c", num_processes=2)
    with pytest.raises(TdpoError, match=r"cannot be reached at \?:\? .*torchrun"):
        tdpo.build_cache("model", "pairs.jsonl", "c")


ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)


@given(
    st.lists(st.tuples(ids, ids, ids), max_size=4), st.dictionaries(st.text(), st.lists(st.integers(0, 9)))
)
def test_a_window_arrives_as_it_was_sent(rows, skipped):
    pairs = [Pair.make(row, *lists) for row, lists in enumerate(rows)]
    content, payload = pack((7, pairs, skipped))
    index, arrived, left_out = unpack(json.loads(json.dumps(content)), payload)
    assert (index, arrived, left_out) == (7, pairs, skipped)
    for mine, theirs in zip(pairs, arrived, strict=True):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert getattr(theirs, name).dtype == np.int32


# Entry files, without any process.

IDENTITY = {"statistics": {"entropy": False, "head": 0, "tail": 0, "seed": 0, "vocab_size": 9}}


def scored(row):
    pair = Pair.make(row, [row], [1, 2], [3])
    return ScoredPair(pair, SideStatistics(np.float32([-row - 1, -2])), SideStatistics(np.float32([-3])))


def opened(path, **options):
    return CacheWriter(path, IDENTITY, {}, source_rows=12, shard_rows=4, **options)


def left_by_a_follower(path, index, identity=IDENTITY, part=None):
    """Write a shard and its entry file, as a follower whose leader died does."""
    writer = ShardWriter(Folder.at(path), Manifest(identity, {}, 12, 4, part=part))
    rows = range(4 * index, 4 * index + 4)
    if index == 2:  # has no file: every row of it was skipped
        return writer.write_shard(index, [], {"same text": list(rows)})
    return writer.write_shard(index, [scored(row) for row in rows], {})


@pytest.fixture
def begun(tmp_path):
    """A cache whose leader died with one shard in the ledger."""
    with opened(tmp_path / "c") as writer:
        writer.write_shard(0, [scored(row) for row in range(4)], {})
    return tmp_path / "c"


def test_shards_left_with_an_entry_file_are_taken_in(begun):
    left = [left_by_a_follower(begun, index) for index in (1, 2)]
    assert {path.name for path in begun.glob("*.json")} == {"manifest.json", entry_name(1), entry_name(2)}
    with opened(begun) as writer:
        assert writer.manifest.shards[1:] == left
        assert not writer.waiting
        writer.finish()
    assert not list(begun.glob("*.entry.json"))
    assert [one.pair.row for one in tdpo.open_cache(begun)] == list(range(8))
    assert tdpo.open_cache(begun).manifest.skipped["same text"].count == 4


def test_readers_pass_over_entry_files_and_verify_says_what_they_wait_for(begun):
    left_by_a_follower(begun, 1)
    assert len(tdpo.open_cache(begun, allow_incomplete=True)) == 4
    faults = [fault.what for fault in tdpo.verify_cache(begun, quiet=True).faults]
    assert any("pairs-00001.parquet" in what and "its entry file waits" in what for what in faults)


@pytest.mark.parametrize("identity", [{**IDENTITY, "reference": "another"}, IDENTITY])
def test_an_entry_of_another_cache_is_not(begun, identity):
    left_by_a_follower(begun, 1, identity, part=Part(2, 3))
    with opened(begun) as writer:
        assert writer.waiting == [1, 2]
    assert sorted(path.name for path in begun.iterdir()) == ["manifest.json", "pairs-00000.parquet"]


def test_overwriting_takes_in_nothing(begun):
    left_by_a_follower(begun, 1)
    with opened(begun, overwrite=True) as writer:
        assert writer.waiting == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_leftover_is_never_taken_in_as_something_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged") / "c"
    with opened(folder) as writer:
        writer.write_shard(0, [scored(row) for row in range(4)], {})
    shard = left_by_a_follower(folder, 1)
    name = data.draw(st.sampled_from([entry_name(1), str(shard.file)]))
    content = bytearray((folder / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with opened(folder) as writer:
        taken_in = [one for one in writer.manifest.shards if one.index == 1]
        # JSON bears some changes of white space.
        assert taken_in in ([], [shard])
        assert not taken_in or name != shard.file
