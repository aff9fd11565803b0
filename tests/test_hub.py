"""A cache goes to the hub and comes back whole, or not at all; the hub is a stand-in on this machine."""

import json
import os
import shutil

import pytest
from hub_server import hub_client, hub_server
from support import run_tdpo

import tdpo
from tdpo.core.errors import CacheError, ConfigError


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    with hub_server(tmp_path_factory.mktemp("hf")) as found:
        yield found


@pytest.fixture(scope="module")
def call(standin):
    with hub_client(standin[1]) as call:
        yield call


@pytest.fixture
def hub(standin):
    standin[0].repos.clear()
    standin[0].objects.clear()
    standin[0].uploads.clear()
    standin[0].broken_downloads = 0
    return standin[0]


@pytest.fixture
def mine(cache, tmp_path):
    """A copy of the finished cache, to change."""
    return shutil.copytree(cache, tmp_path / "mine")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_pushes_and_pulls(standin, hub, cache, tmp_path):
    pushed = run_tdpo("cache", "push", cache, "me/pairs", "--private", env=standin[1])
    assert "me/pairs: 48 pairs" in pushed.stdout
    assert hub.repos["me/pairs"]["private"]
    assert {"manifest.json", "README.md", "pairs-00000.parquet"} <= hub.files("me/pairs").keys()
    pulled = run_tdpo("cache", "pull", "me/pairs", tmp_path / "got", "--json", env=standin[1])
    assert json.loads(pulled.stdout)["rows"] == 48
    assert pulled.stderr == ""
    assert content(tmp_path / "got") == content(cache)
    assert tdpo.verify_cache(tmp_path / "got", quiet=True).ok
    assert os.listdir(tmp_path) == ["got"]


def test_a_cache_on_the_hub_is_read_where_it_lies(standin, call, hub, cache):
    call("push_cache", cache, "me/pairs")
    checked = run_tdpo("cache", "verify", "hf://datasets/me/pairs", env=standin[1])
    assert "hf://datasets/me/pairs: no faults in 48 pairs" in checked.stdout


def test_only_a_caches_own_files_travel(call, hub, mine, tmp_path):
    before = content(mine)
    for name in ("notes.txt", "pairs-00099.parquet", ".lock", "pairs-00000.parquet.tmp", "model.safetensors"):
        (mine / name).write_bytes(b"mine")
    call("push_cache", mine, "me/pairs")
    assert hub.files("me/pairs").keys() - {".gitattributes"} == before.keys()
    repo = hub.repos["me/pairs"]
    hub.commit(repo, "main", {**hub.files("me/pairs"), "evil.py": b"x", "pairs-00099.parquet": b"y" * 10})
    call("pull_cache", "me/pairs", tmp_path / "got")
    assert content(tmp_path / "got") == before


def test_scores_and_an_output_head_travel_with_the_shards(call, hub, reference, pairs, tmp_path):
    whole = tmp_path / "whole"
    tdpo.build_cache(reference, pairs, whole, shard_rows=20, limit=30, distribution="exact", quiet=True)
    tdpo.add_statistics(whole, "more", head=12, tail=2, quiet=True)
    call("push_cache", whole, "me/pairs")
    assert {"scores/more-00001.parquet", "reference_head.safetensors"} <= hub.files("me/pairs").keys()
    call("pull_cache", "me/pairs", tmp_path / "got")
    assert content(tmp_path / "got") == content(whole)
    head = whole / "reference_head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"?")
    with pytest.raises(CacheError, match=r"reference_head\.safetensors is missing or damaged"):
        call("push_cache", whole, "me/pairs")


def test_a_push_replaces_the_cache_that_was_there_in_one_commit(call, hub, mine):
    call("push_cache", mine, "me/pairs")
    repo = hub.repos["me/pairs"]
    stale = {"pairs-00007.parquet": b"old", "scores/old-00000.parquet": b"old", "notes.md": b"kept"}
    hub.commit(repo, "main", {**hub.files("me/pairs"), **stale})
    commits, sent = len(repo["commits"]), len(hub.uploads)
    call("push_cache", mine, "me/pairs")
    assert len(repo["commits"]) == commits + 1
    assert len(hub.uploads) == sent  # what the hub has is not sent again
    assert "notes.md" in hub.files("me/pairs")
    assert not stale.keys() & hub.files("me/pairs").keys() - {"notes.md"}


def test_a_branch_is_made_pushed_to_and_pulled_from(call, hub, mine, tmp_path):
    done = call("push_cache", mine, "me/pairs", revision="v2")
    assert "manifest.json" not in hub.files("me/pairs", "main")
    with pytest.raises(CacheError, match=r"is no cache: it has no manifest\.json"):
        call("pull_cache", "me/pairs", tmp_path / "got")
    for revision in ("v2", done["commit"]):
        call("pull_cache", "me/pairs", tmp_path / revision, revision=revision)
        assert content(tmp_path / revision) == content(mine)
    with pytest.raises(CacheError, match="no such revision; check --revision"):
        call("pull_cache", "me/pairs", tmp_path / "got", revision="v3")


def test_a_cache_that_is_not_whole_is_not_pushed(call, hub, mine):
    manifest = mine / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(CacheError, match=r"is not finished.*only a whole cache is pushed"):
        call("push_cache", mine, "me/pairs")
    manifest.write_text(text)
    shard = mine / "pairs-00001.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet is missing or damaged"):
        call("push_cache", mine, "me/pairs")
    shard.unlink()
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet is missing or damaged"):
        call("push_cache", mine, "me/pairs")
    with pytest.raises(CacheError, match="no cache at"):
        call("push_cache", mine / "none", "me/pairs")
    with pytest.raises(ConfigError, match="needs a folder on this machine"):
        call("push_cache", "memory://a/b", "me/pairs")
    assert hub.repos == {}


def test_a_damaged_download_never_takes_the_folders_name(call, hub, mine, tmp_path):
    call("push_cache", mine, "me/pairs")
    files = hub.files("me/pairs")
    data = files["pairs-00001.parquet"]
    hub.commit(hub.repos["me/pairs"], "main", {**files, "pairs-00001.parquet": data[:-1] + b"?"})
    with pytest.raises(CacheError, match=r"pairs-00001\.parquet is missing or damaged"):
        call("pull_cache", "me/pairs", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    hub.commit(hub.repos["me/pairs"], "main", files)
    call("pull_cache", "me/pairs", tmp_path / "got")  # goes on with what came whole
    assert content(tmp_path / "got") == content(mine)


def test_a_download_that_is_cut_off_goes_on(call, hub, mine, tmp_path):
    call("push_cache", mine, "me/pairs")
    hub.broken_downloads = 1000
    with pytest.raises(CacheError, match="run the same command again, which goes on from there"):
        call("pull_cache", "me/pairs", tmp_path / "got")
    assert not (tmp_path / "got").exists()
    hub.broken_downloads = 0
    call("pull_cache", "me/pairs", tmp_path / "got")
    assert content(tmp_path / "got") == content(mine)


def test_a_folder_of_something_else_is_left_alone(call, hub, mine, tmp_path):
    call("push_cache", mine, "me/pairs")
    assert call("pull_cache", "me/pairs", mine)["commit"] is None  # it is there already
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(CacheError, match=r"not empty \(it holds photo\.jpg\)"):
        call("pull_cache", "me/pairs", tmp_path / "other")
    manifest = json.loads((mine / "manifest.json").read_text())
    manifest["identity"]["limits"] = "other"
    (mine / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="holds another cache than me/pairs"):
        call("pull_cache", "me/pairs", mine)
    (tmp_path / "empty").mkdir()
    call("pull_cache", "me/pairs", tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine", "other"]


def test_the_hub_refusing_is_one_line(call, hub, mine, tmp_path):
    with pytest.raises(CacheError, match=r"no such data set, or not for you.*hf auth login"):
        call("pull_cache", "me/none", tmp_path / "got")
    for name in ("bad name", "a/b/c", "-x"):
        with pytest.raises(ConfigError, match="a repository is named USER/NAME"):
            call("pull_cache", name, tmp_path / "got")
    with pytest.raises(CacheError, match="is switched off; unset HF_HUB_OFFLINE"):
        tdpo.pull_cache("me/pairs", tmp_path / "got", quiet=True)
    with pytest.raises(CacheError, match="is switched off; unset HF_HUB_OFFLINE"):
        tdpo.push_cache(mine, "me/pairs", quiet=True)
    assert sorted(os.listdir(tmp_path)) == ["mine"]
