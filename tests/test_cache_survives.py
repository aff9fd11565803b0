"""What a disk, a clock, a builder or SIGKILL can do to a cache: one clear line, no finished shard lost."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_cache_durable import IDENTITY, build, content, opened, start, write

from tdpo.cache.errors import CacheError
from tdpo.cache.manifest import read_manifest
from tdpo.cache.reader import open_cache
from tdpo.cache.storage.files import Folder
from tdpo.cache.verify import check_cache

posix = pytest.mark.skipif(os.name != "posix", reason="processes, links and permissions of POSIX")


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def faults(path):
    """Faults of the files; the made-up values of these tests are not those of any distribution."""
    found = check_cache(Folder.at(path), read_manifest(Folder.at(path)), lambda rows: None)
    return [fault for fault in found.shown if fault.row is None]


def in_child(check):
    """Run a check in a forked process; what it raises fails the test."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
        finally:
            os._exit(code)
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@posix
@pytest.mark.parametrize("name", ["pairs-00001.parquet", "manifest.json"])
def test_a_full_disk_is_one_line_and_finished_shards_stay(tmp_path, name):
    path = tmp_path / "c"
    with opened(path) as writer:
        write(writer, 0)
        # What is written under this name meets a device that has no space left.
        (path / f"{name}.tmp").symlink_to("/dev/full")
        with pytest.raises(CacheError, match=r"No space left on device; free some space") as caught:
            write(writer, 1)
        assert name in one_line(caught)
    assert ".lock" not in os.listdir(path)
    assert not (path / f"{name}.tmp").exists()
    with opened(path) as writer:
        assert writer.finished == {0}
        write(writer, 1)
        write(writer, 2)
        writer.finish()
    assert faults(path) == []


@posix
def test_a_folder_that_may_not_be_written_to_is_one_line_and_can_be_read():
    root = Path(tempfile.mkdtemp(prefix="tdpo-read-only-"))

    def as_another():
        if os.geteuid() == 0:  # whom no permission stops
            os.setegid(65534)
            os.seteuid(65534)
        for name in ("begun", "new"):
            with pytest.raises(CacheError, match=r"Permission denied; choose a folder") as caught:
                opened(root / name)
            assert name in one_line(caught)
        assert len(open_cache(root / "finished")) == 40
        assert faults(root / "finished") == []

    try:
        with opened(root / "begun") as writer:
            write(writer, 0)
        build(root / "finished", IDENTITY)
        before = {name: content(root / name) for name in ("begun", "finished")}
        for folder in (root / "begun", root / "finished", root):
            folder.chmod(0o555)
        in_child(as_another)
        assert {name: content(root / name) for name in before} == before
        assert sorted(os.listdir(root)) == ["begun", "finished"]
    finally:
        for folder in (root, *root.iterdir()):
            folder.chmod(0o755)
        shutil.rmtree(root)


@posix
def test_a_folder_that_vanishes_is_one_line_and_its_shards_are_there_when_it_is_back(tmp_path):
    path, away = tmp_path / "c", tmp_path / "away"
    with opened(path) as writer:
        write(writer, 0)
        path.rename(away)
        with pytest.raises(CacheError, match=r"cannot write .*: No such file.*still mounted") as caught:
            write(writer, 1)
        one_line(caught)
    assert not path.exists()
    away.rename(path)
    with opened(path) as writer:
        assert writer.finished == {0}
        for index in writer.waiting:
            write(writer, index)
        writer.finish()
    reader = open_cache(path)
    path.rename(away)
    with pytest.raises(CacheError, match=r"cannot read .*: No such file") as caught:
        reader.read([0])
    one_line(caught)


@posix
def test_of_builders_that_begin_at_once_one_builds_and_the_others_are_told(tmp_path):
    path = tmp_path / "c"
    ready, go = os.pipe()
    results = [tmp_path / f"{number}" for number in range(4)]
    for result in results:
        if os.fork() == 0:
            try:
                os.close(go)
                os.read(ready, 1)
                build(path, IDENTITY, 0.05)
                result.write_text("built")
            except CacheError as error:
                result.write_text(str(error))
            finally:
                os._exit(0)
    os.close(ready)
    os.close(go)  # all of them read the end of the pipe now
    for _ in results:
        os.wait()
    said = sorted(result.read_text() for result in results)
    assert said.count("built") == 1
    assert all("is being written by" in line and "\n" not in line for line in said if line != "built")
    build(tmp_path / "alone", IDENTITY)
    assert content(path) == content(tmp_path / "alone")


def test_no_clock_decides_anything(tmp_path):
    """Files from the future and from 1970, and a builder whose clock was set back, change nothing."""
    build(tmp_path / "whole", IDENTITY)
    path = tmp_path / "c"
    with opened(path, source_rows=40) as writer:
        for index in range(4):
            write(writer, index)
    for number, file in enumerate(sorted(path.iterdir())):
        stamp = (4_102_444_800, 0)[number % 2]
        os.utime(file, (stamp, stamp))
    script = "time.time = lambda: 86_400.0; time.time_ns = lambda: 86_400 * 10**9"
    builder = start(f"{script}\nbuild(sys.argv[1], eval(sys.argv[2]))", path, IDENTITY)
    out, err = builder.communicate()
    assert err == ""
    assert out.split() == ["4", "5", "6", "7", "8", "9"]  # and no shard that was finished
    assert content(path) == content(tmp_path / "whole")
    assert faults(path) == []


def test_a_manifest_cut_at_any_byte_is_refused_and_nothing_is_touched(tmp_path):
    path = tmp_path / "c"
    with opened(path) as writer:
        write(writer, 0)
        write(writer, 1)
    whole = (path / "manifest.json").read_bytes()
    names = sorted(os.listdir(path))
    for length in range(len(whole) - 1):  # without its last byte, a newline, it is still itself
        (path / "manifest.json").write_bytes(whole[:length])
        for use in (read_manifest_of, opened):
            with pytest.raises(CacheError, match=r"is damaged.*--overwrite"):
                use(path)
    assert sorted(os.listdir(path)) == names
    (path / "manifest.json").write_bytes(whole)
    with opened(path) as writer:
        assert writer.finished == {0, 1}


def read_manifest_of(path):
    """What `open_cache`, `info`, `verify` and `fit` begin with."""
    return read_manifest(Folder.at(path))


def test_any_single_byte_of_any_shard_that_changes_is_found(tmp_path):
    path = tmp_path / "c"
    with opened(path, source_rows=2, shard_rows=1) as writer:
        write(writer, 0)
        write(writer, 1)
        writer.finish()
    assert faults(path) == []
    folder, manifest = Folder.at(path), read_manifest(Folder.at(path))
    for shard in manifest.shards:
        alone = read_manifest(folder)
        alone.shards = [shard]
        file = path / shard.file
        data = file.read_bytes()
        handle = os.open(file, os.O_RDWR)
        try:
            # Every byte of one shard; of the other every fifth, to keep the test short.
            for place in range(0, len(data), 5 if shard.index else 1):
                os.pwrite(handle, bytes([data[place] ^ (1 << place % 8)]), place)
                found = check_cache(folder, alone, lambda rows: None).shown
                assert any(fault.file == shard.file and "sha256" in fault.what for fault in found), place
                os.pwrite(handle, data[place : place + 1], place)
        finally:
            os.close(handle)
    assert faults(path) == []


def test_a_shard_that_was_changed_is_scored_again_alone_once_it_is_removed(tmp_path):
    build(tmp_path / "c", IDENTITY)
    before = content(tmp_path / "c")
    shard = tmp_path / "c" / "pairs-00004.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 16
    shard.write_bytes(data)
    [fault] = faults(tmp_path / "c")
    assert fault.file == shard.name
    assert "remove it and run the same build command again" in fault.what
    shard.unlink()
    builder = start("build(sys.argv[1], eval(sys.argv[2]))", tmp_path / "c", IDENTITY)
    assert builder.communicate()[0].split() == ["4"]
    assert content(tmp_path / "c") == before


@pytest.mark.slow
@posix
def test_a_build_killed_again_and_again_ends_as_one_left_alone():
    script = Path(__file__).parent.parent / "benchmarks" / "kill_build.py"
    ran = subprocess.run(
        [sys.executable, script, "--kills", "6", "--cli", "1", "--rows", "160", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "after 6 kills the cache is the same as the one left alone" in ran.stdout
