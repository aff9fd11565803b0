"""Caches and folders."""

from .case import Case

BUILD = "tdpo cache build --ref model --dataset pairs.jsonl"
FIT = "tdpo fit --plugin tdpo2"
CUT = ((r"not JSON \(.*?\):", "not JSON (Unterminated string starting at: line 50):"),)
COUNTS = ((r"\d+ bytes instead of \d+", "N bytes instead of M"),)


def held(world):
    from tdpo.cache.writer import CacheWriter

    identity = world.manifest["identity"]
    world.during.enter_context(CacheWriter("new", identity, {}, source_rows=1, shard_rows=1))


def small_disk(world):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48_000, before[1]))
    world.during.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)


def manifest(text):
    return lambda world: world.write("tdpo-cache/manifest.json", text)


def manifest_cut(world):
    world.cut("tdpo-cache/manifest.json")


def edited(change):
    return lambda world: world.edit("tdpo-cache/manifest.json", change)


def outside(document):
    document["shards"][1]["file"] = "../../secret.parquet"


def unfinished(world):
    world.unfinish("tdpo-cache")


def shard_gone(world):
    (world.folder / "tdpo-cache" / "pairs-00001.parquet").unlink()


def shard_cut(world):
    world.cut("tdpo-cache/pairs-00001.parquet")


def shard_damaged(world):
    path = world.folder / "tdpo-cache" / "pairs-00001.parquet"
    data = bytearray(path.read_bytes())
    data[300:400] = bytes(100)
    path.write_bytes(data)


def other_files(world):
    world.write("photos/a.jpg", b"\xff\xd8")


CASES = (
    Case("no cache there", f"{FIT} --cache nowhere", "no cache at nowhere"),
    Case("a folder that is no cache", f"{FIT} --cache photos", "photos is not a cache", other_files),
    Case(
        "a file in a cache's place",
        "tdpo cache info pairs.jsonl",
        "no cache at pairs.jsonl: it is not a folder",
    ),
    Case("nothing to look at", "tdpo cache info nowhere", "no cache at nowhere"),
    Case("nothing to check", "tdpo cache verify nowhere", "no cache at nowhere"),
    Case("a manifest cut short", FIT, "manifest.json is damaged, not JSON", manifest_cut, hide=CUT),
    Case("an empty manifest", FIT, "manifest.json is damaged", manifest("")),
    Case("another program's manifest", FIT, "not the manifest of a cache", manifest('{"name": "app"}')),
    Case(
        "a cache of a newer tdpo",
        FIT,
        "format version 99.*upgrade tdpo",
        edited(lambda document: document.update(format_version=99)),
    ),
    Case(
        "a manifest with a count that cannot be",
        FIT,
        "manifest.json is damaged",
        edited(lambda document: document.update(shard_rows=-1)),
    ),
    Case(
        "a manifest that names a file elsewhere",
        FIT,
        "not a plain file name inside the folder",
        edited(outside),
    ),
    Case("a build that has not ended", FIT, r"2 of 3 shards are finished: run the same build", unfinished),
    Case("a shard that is gone", FIT, r"pairs-00001.parquet is missing", shard_gone),
    Case("a shard cut short", FIT, r"bytes instead of", shard_cut, hide=COUNTS),
    Case(
        "a shard damaged inside",
        "tdpo fit --plugin tdpo2 --output run",
        r"pairs-00001.parquet is damaged",
        shard_damaged,
        keeps=True,
    ),
    Case(
        "another request on a finished cache",
        f"{BUILD} --shard-rows 20 --head 4",
        "statistics.head: the cache has 8, you ask for 4.*--overwrite",
    ),
    Case("--out is a file", f"{BUILD} --out pairs.jsonl", "pairs.jsonl is a file: choose another --out"),
    Case("--out is below a file", f"{BUILD} --out pairs.jsonl/cache", "Not a directory"),
    Case("--out holds something else", f"{BUILD} --out photos", "not empty and not a cache", other_files),
    Case(
        "two builders at once",
        f"{BUILD} --out new",
        "is being written by process .*: wait for it to end",
        held,
        hide=((r"process \d+ on \S+:", "process 4242 on this-machine:"),),
    ),
    Case(
        "no room for a shard",
        f"{BUILD} --out new --shard-rows 16 --head 128 --tail 128",
        "cannot write new/pairs-00000.parquet: File too large",
        small_disk,
        keeps=True,
    ),
)
