"""A manifest is read only when it is whole, ours and safe; what is wrong with it is said in one line."""

import json

import pytest

from tdpo.cache.errors import CacheError
from tdpo.cache.ledger import Shard, Skipped
from tdpo.cache.manifest import Manifest, identity_differences, read_manifest, write_manifest
from tdpo.cache.reader import open_cache
from tdpo.cache.storage.local import LocalFolder

STATISTICS = {"entropy": True, "head": 8, "tail": 8, "seed": 0, "vocab_size": 100}


@pytest.fixture
def folder(tmp_path):
    shards = [
        Shard("pairs-00000.parquet", 0, (0, 4), 3, 30, 40, 500, "0" * 64, {"empty": Skipped(1, (2,))}),
        Shard(None, 1, (4, 6), 0, 0, 0, 0, "", {"empty": Skipped(2, (4, 5))}),
    ]
    folder = LocalFolder(tmp_path)
    write_manifest(folder, Manifest({"statistics": STATISTICS}, {"by": "ä"}, 6, 4, shards, complete=True))
    return folder


def edit(folder, change):
    path = folder.path / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refusal(folder):
    with pytest.raises(CacheError) as caught:
        read_manifest(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder.path) in message
    return message


def test_a_manifest_comes_back_as_written(folder):
    manifest = read_manifest(folder)
    text = (folder.path / "manifest.json").read_text()
    assert manifest.to_json() == text
    assert json.loads(text)["totals"] == {
        "rows": 3,
        "prompt_tokens": 30,
        "completion_tokens": 40,
        "bytes": 500,
        "skipped": {"empty": 3},
    }
    assert manifest.skipped == {"empty": Skipped(3, (2, 4, 5))}


def test_a_manifest_cut_anywhere_is_refused(folder):
    path = folder.path / "manifest.json"
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../pairs-00000.parquet",
        "a/b.parquet",
        "/etc/passwd",
        "..",
        ".",
        "",
        "C:x.parquet",
        "a\\b.parquet",
        "s3://b/x",
        "a\n.parquet",
        ".hidden",
        7,
    ],
)
def test_a_shard_outside_the_folder_is_refused(folder, name):
    edit(folder, lambda document: document["shards"][0].update(file=name))
    assert "not a plain file name" in refusal(folder)


def test_a_newer_format_asks_for_an_upgrade(folder):
    edit(folder, lambda document: document.update(format_version=2))
    assert "upgrade tdpo" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format="other"), "not the manifest of a cache"),
        (lambda d: d.pop("identity"), '"identity"'),
        (lambda d: d.update(shards={}), '"shards"'),
        (lambda d: d.update(source_rows=-1), '"source_rows" is negative'),
        (lambda d: d.update(shard_rows=0), "shard_rows"),
        (lambda d: d.update(complete="yes"), '"complete"'),
        (lambda d: d["shards"].pop(), "complete with 1 of 2"),
        (lambda d: d["shards"].reverse(), "out of order"),
        (lambda d: d["shards"].append(dict(d["shards"][1], index=2)), "too many"),
        (lambda d: d["shards"][0].update(rows=True), '"rows"'),
        (lambda d: d["shards"][0].update(source_rows=[0]), "source_rows"),
        (lambda d: d["shards"][0].update(sha256="x"), "sha256"),
        (lambda d: d["shards"][0].update(skipped={"empty": 3}), "skipped"),
        (lambda d: d["shards"][1].update(rows=1), "no file"),
        (lambda d: d["shards"].__setitem__(0, None), "not an object"),
    ],
)
def test_damage_is_described(folder, change, said):
    edit(folder, change)
    assert said in refusal(folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(folder, content):
    (folder.path / "manifest.json").write_bytes(content)
    refusal(folder)


def test_unknown_keys_are_left_for_later_versions(folder):
    edit(folder, lambda document: document.update(colour="blue"))
    assert read_manifest(folder).rows == 3


def test_a_missing_cache_says_what_to_do(tmp_path):
    with pytest.raises(CacheError, match=r"does not exist.*tdpo cache build"):
        open_cache(tmp_path / "none")
    with pytest.raises(CacheError, match=r"has no manifest\.json"):
        open_cache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="is not a folder"):
        open_cache(tmp_path / "file")
    with pytest.raises(CacheError, match="no kind of storage"):
        open_cache("nosuch://bucket/cache")


@pytest.mark.parametrize("value", [None, {}, dict(STATISTICS, head=-1), dict(STATISTICS, entropy=1)])
def test_statistics_must_be_whole(folder, value):
    edit(folder, lambda document: document["identity"].update(statistics=value))
    with pytest.raises(CacheError, match="statistics"):
        open_cache(folder.path)


def test_differences_name_the_key_and_both_values():
    have = {"statistics": {"k": 8, "seed": 0}, "reference": {"name": "a"}, "limits": {}}
    want = {"statistics": {"k": 16, "seed": 0}, "reference": {"name": "a", "revision": None}, "limits": {}}
    assert identity_differences(have, want) == [
        "reference.revision: the cache has nothing, you ask for null",
        "statistics.k: the cache has 8, you ask for 16",
    ]
    assert identity_differences({"a": (1, 2)}, {"a": [1, 2]}) == []
