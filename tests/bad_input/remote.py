"""Remote stores and the hub.

The store is a real S3 server on this machine. The hub is told to be out of reach.
"""

import shutil

from remote import free_port

from .case import Case
from .folders import CUT

BUILD = "tdpo cache build --ref model --dataset pairs.jsonl"
FIT = "tdpo fit --plugin tdpo2"
S3 = ("s3fs", "moto")
PLACE = ((r"127\.0\.0\.1:\d+", "127.0.0.1:9000"),)


def empty(world):
    world.s3()


def no_credentials(world):
    world.s3(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)


def nobody_there(world):
    world.s3(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}", AWS_MAX_ATTEMPTS="1")


def stored(world):
    """The cache, in the store."""
    import fsspec

    world.s3()
    store = fsspec.filesystem("s3")
    store.put(f"{world.folder / 'tdpo-cache'}/", "bucket/cache/", recursive=True)
    return store


def shard_gone(world):
    stored(world).rm("bucket/cache/pairs-00001.parquet")


def manifest_cut(world):
    store = stored(world)
    store.pipe("bucket/cache/manifest.json", store.cat_file("bucket/cache/manifest.json")[:300])


def other_files(world):
    import fsspec

    world.s3()
    fsspec.filesystem("s3").pipe("bucket/photos/a.jpg", b"\xff\xd8")


def unfinished(world):
    world.unfinish("tdpo-cache")


def part(world):
    world.build("part", shard_rows=16, part="1/3")


def damaged(world):
    path = world.folder / "tdpo-cache" / "pairs-00001.parquet"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def other_folder(world):
    shutil.copytree(world.materials.reference, world.folder / "mine")


CASES = (
    Case("a kind of URL that is none", f"{FIT} --cache s4://bucket/cache", "s4:// is no kind of storage"),
    Case("a URL inside another", f"{FIT} --cache zip://a::s3://bucket/b.zip", "a URL inside another"),
    Case("no such bucket", f"{BUILD} --out s3://bukket/cache", "bukket", empty, needs=S3),
    Case("no credentials", f"{BUILD} --out s3://bucket/cache", "AWS_ACCESS_KEY_ID", no_credentials, needs=S3),
    Case(
        "nobody at the store's address",
        f"{FIT} --cache s3://bucket/cache",
        "s3://bucket/cache",
        nobody_there,
        needs=S3,
        hide=PLACE,
    ),
    Case(
        "no cache in the store",
        f"{FIT} --cache s3://bucket/cache",
        "no cache at s3://bucket/cache",
        empty,
        needs=S3,
    ),
    Case(
        "other files in the store", f"{BUILD} --out s3://bucket/photos", "not a cache", other_files, needs=S3
    ),
    Case(
        "a manifest in the store that was cut short",
        f"{FIT} --cache s3://bucket/cache",
        "s3://bucket/cache/manifest.json is damaged",
        manifest_cut,
        needs=S3,
        hide=CUT,
    ),
    Case(
        "a shard that is gone from the store",
        f"{FIT} --cache s3://bucket/cache",
        "s3://bucket/cache/pairs-00001.parquet is missing",
        shard_gone,
        needs=S3,
    ),
    Case(
        "another request on a cache in the store",
        f"{BUILD} --out s3://bucket/cache --shard-rows 20 --seed 3",
        "statistics.seed: the cache has 0, you ask for 3",
        stored,
        needs=S3,
    ),
    Case("nothing to push", "tdpo cache push nowhere me/pairs", "no cache at nowhere"),
    Case(
        "pushing an unfinished cache", "tdpo cache push tdpo-cache me/pairs", "only a whole cache", unfinished
    ),
    Case("pushing a part", "tdpo cache push part me/pairs", "tdpo cache merge joins", part),
    Case("pushing a damaged cache", "tdpo cache push tdpo-cache me/pairs", "pairs-00001.parquet", damaged),
    Case(
        "pushing without the hub", "tdpo cache push tdpo-cache me/pairs", "cannot push to me/pairs on the hub"
    ),
    Case("pushing from a URL", "tdpo cache push s3://bucket/cache me/pairs", "s3://bucket/cache"),
    Case("pulling without the hub", "tdpo cache pull me/pairs new", "cannot pull from me/pairs on the hub"),
    Case("pulling over other files", "tdpo cache pull me/pairs mine", "is not empty", other_folder),
    Case("pulling to a file", "tdpo cache pull me/pairs pairs.jsonl", "is a file"),
)
