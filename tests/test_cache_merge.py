"""A cache built in parts and merged is the cache that one build gives; parts that do not fit are refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import tdpo
from tdpo.cache.errors import CacheError, TdpoError
from tdpo.cache.ledger import Part
from tdpo.cache.manifest import read_manifest, write_manifest
from tdpo.cache.merge import merge_caches
from tdpo.cache.pairs import Pair, ScoredPair, SideStatistics
from tdpo.cache.reader import open_cache
from tdpo.cache.schema import HEAD_NAME
from tdpo.cache.scores.sets import ScoreColumn, ScoreSet
from tdpo.cache.storage.files import Folder, Written
from tdpo.cache.writer import CacheWriter
from tdpo.core.cli import tdpo as command_line

IDENTITY = {
    "reference": {"name": "model", "dtype": "float32"},
    "statistics": {"entropy": False, "head": 2, "tail": 1, "seed": 0, "vocab_size": 50},
}
PROVENANCE = {"reference": "model", "dataset": "pairs.jsonl", "form": "explicit"}
ROWS = 41


def scored_pair(row):
    rng = np.random.default_rng(row)

    def side(tokens):
        ids = np.stack([25 + rng.permutation(25)[:3] for _ in range(tokens)]).astype(np.uint32)
        return SideStatistics(
            -3 - rng.random(tokens, np.float32), None, ids, np.full((tokens, 3), -2, np.float16)
        )

    pair = Pair.make(row, *(rng.integers(0, 25, rng.integers(1, 30)) for _ in range(3)))
    return ScoredPair(pair, side(len(pair.chosen_ids)), side(len(pair.rejected_ids)))


def build(path, part=None, finish=True, identity=IDENTITY, rows=ROWS):
    """Shards of four rows; every seventh row is skipped, and all of the third shard."""
    options = {"source_rows": rows, "shard_rows": 4, "part": part and Part.parse(part)}
    with CacheWriter(path, identity, PROVENANCE, **options) as writer:
        for index in writer.waiting[: None if finish else 1]:
            rows_here = writer.source_rows(index)
            left_out = [row for row in rows_here if row % 7 == 3 or index == 2]
            kept = [scored_pair(row) for row in rows_here if row not in left_out]
            writer.write_shard(index, kept, {"empty chosen": left_out})
        if finish:
            writer.finish()
            writer.write_options(f"build:\n  ref: model\n  part: {part or 'null'}\n  out: there\n")
    return path


def content(path):
    """All files by checksum; of the manifest all but the provenance, of tdpo.yaml all but the folder."""
    folder = Folder.at(path)
    files = {name: hashlib.sha256(folder.read(name)).hexdigest() for name in folder.names()}
    manifest = json.loads(folder.read("manifest.json"))
    del manifest["provenance"], files["manifest.json"]
    options = folder.read("tdpo.yaml").decode() if files.pop("tdpo.yaml", None) else ""
    card = folder.read("README.md").decode()
    del files["README.md"]
    return files, manifest, card, "part: null" in options


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole") / "cache")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return [build(folder / f"part{i}", f"{i}/3") for i in (1, 2, 3)]


@given(st.integers(0, 3000), st.integers(1, 60))
def test_parts_divide_the_shards_into_even_runs_without_gap_or_overlap(count, of):
    parts = [Part(index, of).shards(count) for index in range(1, of + 1)]
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.text("0123456789/ -+x²", max_size=6))
def test_a_part_is_two_whole_numbers_in_order_or_refused(text):
    try:
        part = Part.parse(text)
    except ValueError:
        return
    assert str(part) == "/".join(str(int(number)) for number in text.split("/"))
    assert 1 <= part.index <= part.of


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_merged_parts_are_the_undivided_cache(tmp_path, whole, parts, order):
    told = []
    reader = merge_caches(
        [parts[i] for i in order], tmp_path / "merged", progress=lambda *args: told.append(args)
    )
    assert content(tmp_path / "merged") == content(whole)
    assert told[-1] == (reader.manifest.bytes, reader.manifest.bytes)
    assert [one.pair for one in reader] == [one.pair for one in open_cache(whole)]
    provenance = reader.manifest.provenance
    assert provenance["dataset"] == "pairs.jsonl"
    assert set(provenance["parts"]) == {"1/3", "2/3", "3/3"}


def test_a_part_is_a_cache_of_its_own_with_shards_of_the_whole(whole, parts):
    everything = {one.pair.row for one in open_cache(whole)}
    for part in parts:
        reader, report = open_cache(part), tdpo.verify_cache(part, quiet=True)
        assert report.ok, str(report)
        rows = [one.pair.row for one in reader]
        assert rows == sorted(set(rows) & everything)
        everything -= set(rows)
        for file in part.glob("pairs-*.parquet"):
            assert file.read_bytes() == (whole / file.name).read_bytes()
    assert not everything


def test_a_part_says_so_in_its_manifest_card_and_info(parts):
    assert json.loads((parts[1] / "manifest.json").read_text())["part"] == {"index": 2, "of": 3}
    assert "| part | 2/3 |" in (parts[1] / "README.md").read_text()
    shown = CliRunner().invoke(command_line, ["cache", "info", str(parts[1])])
    assert "part 2/3" in shown.output


def test_a_part_that_lacks_a_shard_is_incomplete(tmp_path, parts):
    part = tmp_path / "part"
    build(part, "2/3", finish=False)
    with pytest.raises(CacheError, match="1 of 4 shards are finished"):
        open_cache(part)
    build(part, "2/3")
    assert content(part) == content(parts[1])


def test_a_folder_holds_one_part(tmp_path):
    build(tmp_path / "c", "1/3")
    with pytest.raises(CacheError, match=r'part: the cache has "1/3", you ask for "2/3"'):
        build(tmp_path / "c", "2/3")
    with pytest.raises(CacheError, match=r'part: the cache has "1/3", you ask for nothing'):
        build(tmp_path / "c")


def test_a_merge_that_was_cut_off_goes_on(tmp_path, whole, parts):
    merged, seen = tmp_path / "merged", []

    def cut(done, _):
        seen.append(done)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_caches(parts, merged, progress=cut)
    with pytest.raises(CacheError, match="has not ended"):
        open_cache(merged)
    before = {path.name: path.stat().st_mtime_ns for path in merged.glob("pairs-*.parquet")}
    assert before
    merge_caches(parts, merged)
    after = {path.name: path.stat().st_mtime_ns for path in merged.glob("pairs-*.parquet")}
    assert {name: after[name] for name in before} == before
    assert content(merged) == content(whole)


def test_merging_again_changes_nothing(tmp_path, parts):
    merge_caches(parts, tmp_path / "merged")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "merged").glob("*.[pjm]*")}
    merge_caches(parts, tmp_path / "merged")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "merged").glob("*.[pjm]*")} == before


def test_a_damaged_shard_is_found_while_it_is_copied(tmp_path, whole, parts):
    mine = [shutil.copytree(part, tmp_path / part.name) for part in parts]
    shard = mine[1] / "pairs-00005.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CacheError, match=r"pairs-00005\.parquet is damaged.*restore it"):
        merge_caches(mine, tmp_path / "merged")
    assert not (tmp_path / "merged" / "pairs-00005.parquet").exists()
    shutil.copy(parts[1] / shard.name, shard)
    merge_caches(mine, tmp_path / "merged")
    assert content(tmp_path / "merged") == content(whole)


def test_parts_and_whole_may_lie_in_remote_storage(whole, parts):
    remote = [f"memory://merge/part{i}" for i in (1, 2)]
    for i, url in enumerate(remote, 1):
        build(url, f"{i}/3")
    merge_caches([*remote, parts[2]], "memory://merge/whole")
    assert content("memory://merge/whole") == content(whole)


@pytest.fixture
def cases(tmp_path, whole, parts):
    """What may be given by mistake, by name."""
    other = {**IDENTITY, "reference": {"name": "other", "dtype": "float32"}}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    return {
        "1": parts[0],
        "2": parts[1],
        "3": parts[2],
        "whole": whole,
        "copy of 1": shutil.copytree(parts[0], tmp_path / "copy"),
        "2 of 4": build(tmp_path / "of4", "2/4"),
        "other 2": build(tmp_path / "other", "2/3", identity=other),
        "longer 2": build(tmp_path / "longer", "2/3", rows=60),
        "unfinished 2": build(tmp_path / "unfinished", "2/3", finish=False),
        "missing": tmp_path / "missing",
        "full": tmp_path / "full",
        "out": tmp_path / "out",
    }


@pytest.mark.parametrize(
    ("given", "out", "message"),
    [
        ([], "out", "nothing to merge: merge takes all parts"),
        (["1", "2"], "out", r"part 3/3 is missing: give its folder too, or build it with --part 3/3"),
        (["2"], "out", r"part 1/3 and 1 more are missing"),
        (["1", "2", "1"], "out", "is given twice"),
        (["1", "copy of 1", "2", "3"], "out", r"are both part 1/3: give each part once"),
        (["1", "2", "3"], "2", "is one of the parts: choose another --out"),
        (["1", "whole", "3"], "out", "holds a whole cache, not a part"),
        (["1", "2 of 4", "3"], "out", r'part: \S*part1 has "i/3", \S*of4 has "i/4"'),
        (["1", "other 2", "3"], "out", r'reference\.name: \S*part1 has "model", \S*other has "other"'),
        (["1", "longer 2", "3"], "out", "source_rows: .* has 41, .* has 60"),
        (["1", "unfinished 2", "3"], "out", "has not ended, 1 of 4 shards are finished"),
        (["1", "missing", "3"], "out", "no cache at .*missing: it does not exist"),
        (["1", "2", "3"], "full", r"is not empty and not a cache \(it holds thesis.txt\)"),
        (["1", "2", "3"], "other 2", "holds another cache"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_written(cases, given, out, message):
    before = sorted(cases["out"].parent.rglob("*"))
    with pytest.raises(CacheError, match=message) as caught:
        merge_caches([cases[name] for name in given], cases[out])
    assert "\n" not in str(caught.value)
    assert sorted(cases["out"].parent.rglob("*")) == before


def test_a_part_with_a_lost_shard_is_refused(tmp_path, parts):
    lossy = shutil.copytree(parts[1], tmp_path / "lossy")
    (lossy / "pairs-00004.parquet").unlink()
    with pytest.raises(CacheError, match=r"pairs-00004\.parquet is missing: restore it"):
        merge_caches([parts[0], lossy, parts[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_merges_and_tells_a_program(tmp_path, whole, parts):
    arguments = ["cache", "merge", *map(str, parts), "--out", str(tmp_path / "merged")]
    told = CliRunner().invoke(command_line, [*arguments, "--json"])
    made, manifest = json.loads(told.stdout), open_cache(whole).manifest
    assert (made["parts"], made["rows"], made["bytes"]) == (3, manifest.rows, manifest.bytes)
    assert made["completion_tokens"] == manifest.completion_tokens
    assert content(tmp_path / "merged") == content(whole)
    assert "pairs\n" in CliRunner().invoke(command_line, arguments).stdout


def test_parts_of_a_real_build_merge_into_it_and_are_trained_from(tmp_path, reference, pairs, cache):
    options = {"shard_rows": 20, "quiet": True}
    parts = [
        tdpo.build_cache(reference, pairs, tmp_path / f"p{i}", part=f"{i}/2", **options).location
        for i in (1, 2)
    ]
    merged = tdpo.merge_caches(parts, tmp_path / "merged")
    files, manifest, card, _ = content(tmp_path / "merged")
    assert (files, manifest, card) == content(cache)[:3]
    assert len(merged) == 48
    result = tdpo.fit(
        "dpo", parts[0], model=str(reference), output=str(tmp_path / "r"), max_steps=1, quiet=True
    )
    assert result.steps == 1


def test_files_beside_the_shards_are_merged_too(tmp_path, reference, pairs):
    options = {"shard_rows": 6, "limit": 12, "distribution": "exact", "quiet": True}
    tdpo.build_cache(reference, pairs, tmp_path / "whole", **options)
    parts = [tmp_path / f"p{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        tdpo.build_cache(reference, pairs, part, part=f"{i}/2", **options)
    merge_caches(parts, tmp_path / "merged")
    assert content(tmp_path / "merged")[:3] == content(tmp_path / "whole")[:3]
    assert (tmp_path / "merged" / HEAD_NAME).is_file()
    folder = Folder.at(parts[1])
    manifest = read_manifest(folder)
    manifest.files[HEAD_NAME] = Written(manifest.files[HEAD_NAME].bytes, "0" * 64)
    write_manifest(folder, manifest)
    with pytest.raises(CacheError, match=f"not of one cache: .* differ in {HEAD_NAME}"):
        merge_caches(parts, tmp_path / "other")


def test_a_part_with_added_statistics_is_refused(tmp_path, parts):
    folder = Folder.at(shutil.copytree(parts[1], tmp_path / "added"))
    manifest = read_manifest(folder)
    manifest.scores["contrast"] = ScoreSet("contrast", {}, {}, {"token_score": ScoreColumn("token")})
    write_manifest(folder, manifest)
    with pytest.raises(CacheError, match=r"holds the added statistics contrast, .* cache add on the whole"):
        merge_caches([parts[0], folder.location, parts[2]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [("0/2", "from 1/n to n/n"), ("3/2", "from 1/n"), ("half", "from 1/n"), ("4/4", "makes 3 shards, fewer")],
)
def test_a_part_that_cannot_be_is_refused(tmp_path, reference, pairs, part, message):
    with pytest.raises(TdpoError, match=f"--part {part}: .*{message}"):
        tdpo.build_cache(reference, pairs, tmp_path / "c", part=part, shard_rows=20, quiet=True)
    assert not (tmp_path / "c").exists()
