"""A cache in an object store is the cache: built, resumed, verified, read and trained from at its URL."""

import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from remote import environment, free_port, s3_server
from support import run_tdpo
from test_cache_durable import BUILDER, IDENTITY, scored_pair, write

import tdpo
from tdpo.cache.errors import CacheError
from tdpo.cache.manifest import read_manifest
from tdpo.cache.pairs import SIDES
from tdpo.cache.reader import open_cache
from tdpo.cache.storage.files import Folder, is_url, write_all
from tdpo.cache.storage.lease import Lease
from tdpo.cache.verify import check_cache
from tdpo.cache.writer import CacheWriter

pytest.importorskip("s3fs")
pytest.importorskip("moto")

TICK = 0.25


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The environment that leads to a running S3 server; set in this process too."""
    import fsspec

    with s3_server(tmp_path_factory.mktemp("s3") / "log") as variables, environment(variables):
        fsspec.filesystem("s3").mkdir("bucket")
        yield variables


@pytest.fixture(params=["s3", "memory", "folders"])
def url(request, tmp_path):
    """A folder in which nothing is yet: in two object stores, and in storage that has folders of its own."""
    if request.param == "folders":
        return f"local://{tmp_path}/far/cache"
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{request.node.name}/cache"
    return f"memory://{request.node.name}/cache"


def opened(path, **changes):
    options = {"source_rows": 12, "shard_rows": 4, "lease_seconds": TICK, **changes}
    return CacheWriter(path, options.pop("identity", IDENTITY), {}, **options)


def build(path):
    with opened(path) as writer:
        for index in writer.waiting:
            write(writer, index)
        writer.finish()


def ledger(path):
    return read_manifest(Folder.at(path)).shards


def forget_nothing(path):
    """Faults of the files; the made-up values of these tests are not those of any distribution."""
    faults = check_cache(Folder.at(path), read_manifest(Folder.at(path)), lambda rows: None)
    return [fault for fault in faults.shown if fault.row is None]


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", f"{BUILDER}\n{script}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HOLD = """
options = {"source_rows": 12, "shard_rows": 4, "lease_seconds": 0.1}
with CacheWriter(sys.argv[1], eval(sys.argv[2]), {}, **options) as writer:
    writer.write_shard(0, [scored_pair(row) for row in writer.source_rows(0)], {})
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_cache_is_the_same_wherever_it_lies(url, tmp_path):
    build(tmp_path / "local")
    build(url)
    assert ledger(url) == ledger(tmp_path / "local")
    assert Folder.at(url).names() == Folder.at(tmp_path / "local").names()
    reader = open_cache(url)
    assert [one.pair for one in reader] == [scored_pair(row).pair for row in range(12)]
    assert forget_nothing(url) == []
    build(url)  # a finished cache is left as it is
    assert ledger(url) == ledger(tmp_path / "local")


def test_a_reader_of_a_url_goes_through_pickles_threads_and_forks(url):
    from torch.utils.data import DataLoader

    build(url)
    reader = open_cache(url)
    assert reader[5].pair == scored_pair(5).pair  # files are open before the others begin
    if not url.startswith("memory"):
        assert pickle.loads(pickle.dumps(reader))[11].pair == scored_pair(11).pair
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda row: reader.read([row])[0].pair, range(12)))
    assert found == [scored_pair(row).pair for row in range(12)]
    loader = DataLoader(reader, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    rows = [one.pair.row for batch in loader for one in batch]
    assert rows == list(range(12))


def test_a_shard_that_is_damaged_or_gone_is_found_and_scored_again(url):
    build(url)
    folder, before = Folder.at(url), ledger(url)
    content = bytearray(folder.read("pairs-00001.parquet"))
    content[100] ^= 1
    folder.replace("pairs-00001.parquet", lambda file: write_all(file, content))
    folder.remove("pairs-00002.parquet")
    assert [fault.file for fault in forget_nothing(url)] == ["pairs-00001.parquet", "pairs-00002.parquet"]
    with pytest.raises(CacheError, match=r"cache/pairs-00002\.parquet is missing"):
        open_cache(url)
    folder.remove("pairs-00001.parquet")
    build(url)
    assert ledger(url) == before


def test_a_store_that_fails_while_reading_is_not_taken_for_damage(url):
    build(url)
    reader = open_cache(url, cached_groups=1)
    reader.read([0])
    Folder.at(url).remove("pairs-00000.parquet")
    reader.read([4])
    with pytest.raises(CacheError, match=r"cannot read .*pairs-00000\.parquet") as caught:
        reader.read([0])
    assert "damaged" not in str(caught.value)


def test_a_folder_of_other_files_is_refused_and_left_alone(url):
    folder = Folder.at(url)
    folder.create()
    folder.replace("photo.jpg", lambda file: write_all(file, b"mine"))
    with pytest.raises(CacheError, match=r"not a cache \(it holds photo\.jpg"):
        opened(url, overwrite=True)
    with pytest.raises(CacheError, match=r"is a file: choose another --out"):
        opened(folder.locate("photo.jpg"))
    assert folder.names() == ["photo.jpg"]
    assert folder.read("photo.jpg") == b"mine"


def test_a_name_cannot_lead_out_of_a_remote_folder(url):
    folder = Folder.at(url)
    for name in ("../other", "a/b", "..", "s3://bucket/x", ""):
        with pytest.raises(CacheError, match="not a plain name"):
            folder.child(name)
    build(url)
    text = folder.read("manifest.json").replace(b"pairs-00001.parquet", b"../../x/pairs.parquet")
    folder.replace("manifest.json", lambda file: write_all(file, text))
    with pytest.raises(CacheError, match="not a plain file name inside the folder"):
        open_cache(url)


def test_a_failed_write_leaves_what_was_there(url):
    folder = Folder.at(url)
    folder.create()
    folder.replace("manifest.json", lambda file: write_all(file, b"old"))

    def broken(file):
        file.write(b"half")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        folder.replace("manifest.json", broken)
    assert folder.names() == ["manifest.json"]
    assert folder.read("manifest.json") == b"old"


def test_a_file_url_is_a_local_folder(tmp_path):
    assert not is_url(f"file://{tmp_path}")
    build(f"file://{tmp_path}/cache")
    assert len(open_cache(tmp_path / "cache")) == 12


def test_one_builder_at_a_time(url):
    with opened(url) as first:
        write(first, 0)
        with pytest.raises(CacheError, match=r"being written by process \d+ on .*--out"):
            opened(url)
        write(first, 1)
    with opened(url) as second:  # the lease was given back
        assert second.finished == {0, 1}
    assert ".lock" not in Folder.at(url).names()


def test_the_lease_of_a_builder_that_fell_silent_is_taken_over(url):
    folder = Folder.at(url)
    folder.create()
    folder.replace(".lock", lambda file: write_all(file, b'{"holder": "process 1 on another machine"}'))
    begun = time.monotonic()
    with opened(url) as writer:
        write(writer, 0)
    assert time.monotonic() - begun >= 4 * TICK  # it has had its chance to change


def test_a_builder_that_lost_its_lease_enters_nothing(url):
    writer = opened(url, lease_seconds=60)
    write(writer, 0)
    before = Folder.at(url).read("manifest.json")
    Folder.at(url).replace(".lock", lambda file: write_all(file, b'{"nonce": "of another builder"}'))
    with pytest.raises(CacheError, match="was taken over by another builder") as caught:
        write(writer, 1)
    assert "\n" not in str(caught.value)
    writer.close()
    assert Folder.at(url).read("manifest.json") == before
    assert b"another" in Folder.at(url).read(".lock")  # what is not its own it does not remove


def test_of_many_builders_at_once_one_gets_the_lease(url):
    Folder.at(url).create()

    def compete(_):
        try:
            # Long enough that on a busy machine nobody falls silent.
            return Lease(Folder.at(url), 4 * TICK)
        except CacheError:
            return None

    with ThreadPoolExecutor(6) as threads:
        held = [lease for lease in threads.map(compete, range(6)) if lease is not None]
    assert len(held) == 1
    held[0].check()
    held[0].release()
    held[0].release()
    assert Folder.at(url).names() == []


def test_a_killed_builder_is_followed_at_once_and_its_shards_are_kept(s3):
    url = "s3://bucket/killed/cache"
    builder = start(HOLD, url, IDENTITY)
    assert builder.stdout.readline() == "holding\n", builder.communicate()
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert ".lock" in Folder.at(url).names()
    # The interval is a day: only that the process of this machine is gone can let us in.
    with opened(url, lease_seconds=86_400) as writer:
        assert writer.finished == {0}
        assert not writer.manifest.complete


def test_stages_work_at_a_url_as_in_a_folder(s3, cache, reference, pairs, tmp_path):
    url = "s3://bucket/stages/cache"
    tdpo.build_cache(reference, pairs, url, shard_rows=20, quiet=True)
    assert Folder.at(url).names() == Folder.at(cache).names()
    here, there = open_cache(cache), open_cache(url)
    assert there.identity == here.identity
    for ours, theirs in zip(here, there, strict=True):
        assert ours.pair == theirs.pair
        for side in SIDES:
            np.testing.assert_array_equal(ours.side(side).ref_logp, theirs.side(side).ref_logp)
            np.testing.assert_array_equal(ours.side(side).dist_ids, theirs.side(side).dist_ids)
    assert tdpo.verify_cache(url, rescore=4, quiet=True).ok
    shown = run_tdpo("cache", "info", url)
    assert "48 pairs" in shown.stdout
    fitted = [
        tdpo.fit("tdpo2", place, output=tmp_path / name, eval_cache=place, max_steps=2, learning_rate=1e-3)
        for name, place in (("here", cache), ("there", url))
    ]
    assert fitted[0].metrics["loss"] == fitted[1].metrics["loss"]


def test_scores_and_an_output_head_lie_in_a_store_as_well(reference, pairs):
    url = "memory://whole/cache"
    tdpo.build_cache(reference, pairs, url, shard_rows=20, limit=30, distribution="exact", quiet=True)
    tdpo.add_statistics(url, "more", head=12, tail=2, quiet=True)
    assert Folder.at(url).child("scores").names() == ["more-00000.parquet", "more-00001.parquet"]
    assert tdpo.verify_cache(url, rescore=2, quiet=True).ok
    scores = tdpo.open_scores(url, "more").read([one.pair for one in open_cache(url)])
    assert {len(values) for values in scores.values()} == {30}
    assert "reference_head.safetensors" in Folder.at(url).names()
    tdpo.build_cache(reference, pairs, url, shard_rows=20, limit=20, overwrite=True, quiet=True)
    assert "reference_head.safetensors" not in Folder.at(url).names()
    assert Folder.at(url).child("scores").names() == []


def test_a_store_that_refuses_is_one_line_that_says_what_to_do(s3):
    with pytest.raises(CacheError, match=r"no cache at s3://nowhere/c: it does not exist"):
        open_cache("s3://nowhere/c")
    with pytest.raises(CacheError, match=r"has no manifest\.json|does not exist"):
        open_cache("s3://bucket")
    with pytest.raises(
        CacheError, match=r"cannot write s3://nowhere/c/\.lock: .*bucket does not exist.*must exist"
    ):
        opened("s3://nowhere/c")
    import fsspec

    assert not fsspec.filesystem("s3").exists("nowhere")  # a bucket is not made of a misspelt name
    with pytest.raises(CacheError, match=r"gs://.*gcsfs"):
        Folder.at("gs://bucket/c")
    with pytest.raises(CacheError, match=r"nosuch:// is no kind of storage"):
        Folder.at("nosuch://bucket/c")


def test_credentials_and_network_are_told_apart(s3):
    secret = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    nowhere = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), "/dev/null")
    unknown = r"cannot .*: Unable to locate credentials; set AWS_ACCESS_KEY_ID"
    with environment({**secret, **nowhere}), pytest.raises(CacheError, match=unknown):
        open_cache("s3://bucket/c")
    closed = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_MAX_ATTEMPTS": "1"}
    unreached = r"Could not connect.*check the network and AWS_ENDPOINT_URL"
    with environment(closed), pytest.raises(CacheError, match=unreached) as caught:
        open_cache("s3://bucket/c")
    assert "\n" not in str(caught.value)


def test_credentials_that_a_store_refuses_are_told(tmp_path):
    # This server asks who is there, and knows nobody.
    server = s3_server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="0")
    with server as variables, environment(variables):
        for use in (open_cache, opened):
            with pytest.raises(CacheError, match=r"s3://bucket/c: .*; check the credentials") as caught:
                use("s3://bucket/c")
            assert "\n" not in str(caught.value)


def test_the_command_line_says_it_in_one_line(s3):
    told = run_tdpo("cache", "info", "s3://nowhere/c", check=False)
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1
