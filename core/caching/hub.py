"""Sharing a cache on the Hugging Face hub, as a data set: push and pull, of a whole cache or none."""

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from ...cache.card import CARD_NAME
from ...cache.layout import OPTIONS_NAME
from ...cache.manifest import MANIFEST_NAME, Manifest, read_manifest
from ...cache.scores.sets import SCORES_FOLDER
from ...cache.storage.files import Folder, Written, explained
from ...cache.storage.local import LocalFolder
from ..errors import CacheError, ConfigError
from ..hub import talking
from ..progress import Progress

_UNLISTED = (MANIFEST_NAME, CARD_NAME, OPTIONS_NAME)
"""Files of a cache that no ledger lists."""

_REPLACED = ("pairs-*.parquet", f"{SCORES_FOLDER}/*.parquet", "*.safetensors")
"""What a push removes of a cache that the repository held before."""


@dataclass(frozen=True)
class Transfer:
    """What :func:`push_cache` or :func:`pull_cache` moved."""

    path: str
    """The cache's folder."""
    repository: str
    commit: str | None
    """Of the repository; None where the folder held the cache already."""
    rows: int
    bytes: int
    """Of all files with a checksum."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a program."""
        return asdict(self)


def push_cache(
    path: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> Transfer:
    """Upload a finished cache in one commit; what ``tdpo cache push`` does.

    Every file is held against its checksum first. A cache that the repository held before is replaced.

    Args:
        path: the cache's folder, on this machine.
        repository: ``USER/NAME``; made, as a data set, where it is missing.
        private: whether a repository that is made is private.
        revision: a branch; made where it is missing. The main one when not given.
        quiet: show no progress.

    Raises:
        TdpoError: no finished, whole cache there, or the hub refuses.
    """
    folder = _local(path, "push")
    manifest = read_manifest(folder)
    if not manifest.complete or manifest.part is not None:
        what = "is not finished: run the same build command again"
        if manifest.part is not None:
            what = f"is part {manifest.part} of a cache: tdpo cache merge joins the parts"
        raise CacheError(f"{folder.location} {what}; only a whole cache is pushed")
    _check_files(folder, manifest, quiet)
    names = [*_files(manifest), *(name for name in _UNLISTED if folder.size(name) is not None)]
    with talking("push to", repository, "data set", quiet):
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, repo_type="dataset", exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder.path,
            revision=revision,
            allow_patterns=names,
            delete_patterns=list(_REPLACED),
            commit_message=f"tdpo cache of {manifest.rows:,} pairs",
        )
    return _transfer(folder, repository, commit.oid, manifest)


def pull_cache(
    repository: str,
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    quiet: bool = False,
) -> Transfer:
    """Download a cache; what ``tdpo cache pull`` does.

    It comes into a folder beside ``path``, is held against its checksums there, and takes its name last. The
    same call goes on with a download that was cut off.

    Args:
        repository: ``USER/NAME`` of a data set on the hub.
        path: the folder to make, on this machine.
        revision: branch, tag or commit; the main branch when not given.
        quiet: show no progress.

    Raises:
        TdpoError: the folder holds something else, the hub refuses, or what came is no whole cache.
    """
    folder = _local(path, "pull")
    if folder.is_file():
        raise CacheError(f"{folder.location} is a file: choose another folder to pull into")
    there = folder.names()
    if there and MANIFEST_NAME not in there:
        raise CacheError(
            f"{folder.location} is not empty (it holds {there[0]}): choose another folder to pull into"
        )
    staging = LocalFolder(folder.path.with_name(f"{folder.path.name}.pull"))
    with talking("pull from", repository, "data set", quiet):
        # One commit from here on, whatever is pushed meanwhile.
        commit = HfApi().repo_info(repository, repo_type="dataset", revision=revision).sha
    _download(repository, commit, staging, [MANIFEST_NAME], quiet)
    if staging.size(MANIFEST_NAME) is None:
        _discard(staging)
        raise CacheError(f"{repository} on the hub is no cache: it has no {MANIFEST_NAME}; check the name")
    manifest = read_manifest(staging)
    if not manifest.complete or manifest.part is not None:
        raise CacheError(f"{repository} holds a cache that is not finished: ask its owner to push it again")
    if there:
        _discard(staging)
        _compare(folder, manifest, repository)
        return _transfer(folder, repository, None, manifest)
    _download(repository, commit, staging, [*_UNLISTED, *_files(manifest)], quiet)
    try:
        _check_files(staging, manifest, quiet)
    except CacheError:
        _discard(staging)  # the hub's client takes it for whole, and would not fetch it again
        raise
    with explained("write", folder.location):
        shutil.rmtree(staging.path / ".cache", ignore_errors=True)
        if folder.exists():
            folder.path.rmdir()
        os.replace(staging.path, folder.path)
    return _transfer(folder, repository, commit, manifest)


def _download(
    repository: str, commit: str | None, staging: LocalFolder, names: list[str], quiet: bool
) -> None:
    """Bring the files of these names, and no other, that the repository holds at a commit."""
    with talking("pull from", repository, "data set", quiet):
        snapshot_download(
            repository, repo_type="dataset", revision=commit, local_dir=staging.path, allow_patterns=names
        )


def _local(path: str | os.PathLike[str], word: str) -> LocalFolder:
    folder = Folder.at(path)
    if not isinstance(folder, LocalFolder):
        raise ConfigError(f"{folder.location}: tdpo cache {word} needs a folder on this machine, not a URL")
    return LocalFolder(folder.path.absolute())


def _files(manifest: Manifest) -> dict[str, Written]:
    """Path inside the folder -> what it must be, of every file that a ledger lists."""
    listed = {shard.file: Written(shard.bytes, shard.sha256) for shard in manifest.shards if shard.file}
    for scores in manifest.scores.values():
        listed |= {
            f"{SCORES_FOLDER}/{shard.file}": Written(shard.bytes, shard.sha256) for shard in scores.shards
        }
    return listed | manifest.files


def _check_files(folder: LocalFolder, manifest: Manifest, quiet: bool) -> None:
    """Refuse files that are missing or damaged, of those that a ledger lists."""
    files = _files(manifest)
    done = 0
    with Progress("checking", sum(one.bytes for one in files.values()), "bytes", quiet=quiet) as progress:
        for path, expected in files.items():
            inside, name = folder, path
            if path.startswith(f"{SCORES_FOLDER}/"):
                inside, name = folder.child(SCORES_FOLDER), path.partition("/")[2]
            if inside.size(name) != expected.bytes or inside.sha256(name) != expected.sha256:
                raise CacheError(
                    f"{inside.locate(name)} is missing or damaged: tdpo cache verify tells more; build or "
                    "pull the cache again"
                )
            done += expected.bytes
            progress.reach(done)


def _compare(folder: LocalFolder, pulled: Manifest, repository: str) -> None:
    """Refuse a folder that holds another cache than the one pulled."""
    if read_manifest(folder) != pulled:
        raise CacheError(
            f"{folder.location} holds another cache than {repository}: choose another folder, or remove it"
        )


def _discard(staging: LocalFolder) -> None:
    with suppress(OSError):
        shutil.rmtree(staging.path)


def _transfer(folder: LocalFolder, repository: str, commit: str | None, manifest: Manifest) -> Transfer:
    size = sum(one.bytes for one in _files(manifest).values())
    return Transfer(folder.location, repository, commit, manifest.rows, size)
