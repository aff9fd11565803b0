"""Streams: rows are read once, one after the other, and give what the same rows give from a table."""

import gzip
import itertools
import json
import tracemalloc

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdpo
from tdpo.cache.pairs import Pair
from tdpo.core.data.pairing import Skip
from tdpo.core.data.rows import SHUFFLE_BUFFER
from tdpo.core.data.source import open_source
from tdpo.core.data.spool import spool_pairs
from tdpo.core.errors import DataError

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(30)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def letters(row_number: int, row: dict) -> Pair | Skip:
    """One token a letter; rows whose chosen text begins so are skipped."""
    if not row["chosen"] or row["chosen"].startswith("skip"):
        return Skip("missing chosen")
    return Pair.make(row_number, *([ord(c) for c in row[name]] for name in ("prompt", "chosen", "rejected")))


def content(source, window=7):
    with spool_pairs(source, letters, window=window) as spool:
        windows = [spool.window(at) for at in range(len(spool))]
        return windows, spool.source_rows, spool.skipped, spool.content


def streams(rows):
    """The same rows in every kind of stream that Python has."""
    return {
        "generator": (row for row in rows),
        "iterator": iter(rows),
        "map": map(dict, rows),
        "dict of rows": dict(enumerate(rows)).values(),
        "typed IterableDataset": datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3),
        "untyped IterableDataset": datasets.IterableDataset.from_generator(rows.__iter__),
        "IterableDatasetDict": datasets.IterableDatasetDict(
            {"train": datasets.Dataset.from_list(rows).to_iterable_dataset()}
        ),
    }


KINDS = list(streams(ROWS))


# What a stream gives


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [None, 1, 13, 99])
def test_a_stream_gives_what_a_list_gives(kind, limit):
    source = open_source(streams(ROWS)[kind], limit=limit)
    assert source.length is None
    assert source.form == "explicit"
    assert content(source) == content(open_source(ROWS, limit=limit))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "yes it is", "skip", None]), min_size=1, max_size=40).filter(any),
    st.integers(1, 12),
    st.none() | st.integers(1, 45),
)
def test_any_stream_gives_what_the_list_of_its_rows_gives(chosen, window, limit):
    rows = [{"prompt": f"p{at}", "chosen": text, "rejected": "no"} for at, text in enumerate(chosen)]
    if not any(chosen[:limit]):
        return
    assert content(open_source(iter(rows), limit=limit), window) == content(
        open_source(rows, limit=limit), window
    )


def test_a_stream_is_read_once():
    source = open_source(iter(ROWS))
    with pytest.raises(TypeError, match="not known before"):
        len(source)
    assert list(source.rows) == ROWS
    with pytest.raises(ValueError, match="read once"):
        list(source.rows)


def test_no_more_is_read_than_the_limit_asks_for():
    read = []
    rows = (
        {"chosen": f"a {at}", "rejected": f"b {at}", "prompt": read.append(at)} for at in itertools.count()
    )
    assert len(list(open_source(rows, limit=250).rows)) == 250
    assert len(read) <= 251


def test_columns_are_named_and_others_left_out():
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"], "x": 1} for row in ROWS]
    for kind, stream in streams(rows).items():
        source = open_source(stream, column_map={"prompt": "q", "chosen": "good", "rejected": "bad"})
        assert {
            key: value for row in source.rows for key, value in row.items() if value is not None
        }.keys() == {
            "prompt",
            "chosen",
            "rejected",
        }, kind
        with pytest.raises(DataError, match="did you mean 'good'"):
            open_source(streams(rows)[kind], column_map={"chosen": "goot"})
        with pytest.raises(DataError, match="no column 'chosen'; found 'q', 'good', 'bad', 'x'"):
            open_source(streams(rows)[kind])


def test_a_column_may_appear_late():
    rows = [{"chosen": f"a {at}", "rejected": f"b {at}"} for at in range(300)]
    rows.append({**rows[0], "tools": "[]", "prompt": "p"})
    *_, last = open_source(iter(rows)).rows
    assert last == rows[-1]


def test_a_stream_without_rows_or_of_something_else_is_refused():
    nothing = datasets.Dataset.from_list(ROWS).to_iterable_dataset().filter(lambda row: False)
    for empty in (iter([]), nothing):
        with pytest.raises(DataError, match="no rows"):
            open_source(empty)
    with pytest.raises(DataError, match="row 1 is str; every row must be a dict"):
        list(open_source(iter([ROWS[0], "text"])).rows)
    with pytest.raises(DataError, match="none of the first 2 rows has text"):
        open_source(iter([{"chosen": 1, "rejected": 2}] * 2))
    with pytest.raises(DataError, match="unknown split 'test'"):
        open_source(streams(ROWS)["IterableDatasetDict"], split="test")


def test_an_error_of_the_users_own_generator_stays_what_it_is():
    def broken():
        yield from ROWS
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(open_source(broken()).rows)


# Files, streamed


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_a_streamed_file_gives_what_the_file_gives(tmp_path, name):
    path = write(tmp_path / name)
    for options in ({}, {"limit": 4}):
        streamed = open_source(path, streaming=True, **options)
        assert streamed.length is None
        whole = open_source(path, **options)
        assert content(streamed) == content(whole)
        assert streamed.identity == whole.identity


def test_streaming_keeps_no_copy_on_the_disk(tmp_path):
    list(open_source(write(tmp_path / "a.jsonl"), streaming=True).rows)
    assert not list(datasets.config.HF_DATASETS_CACHE.rglob("*.arrow"))


def test_several_files_and_a_folders_split_are_streamed(tmp_path):
    write(tmp_path / "train-0.jsonl", ROWS[:9])
    write(tmp_path / "train-1.jsonl", ROWS[9:20])
    write(tmp_path / "test.jsonl", ROWS[20:])
    for given_files, split, expected in (
        (tmp_path, "train", ROWS[:20]),
        (tmp_path, "test", ROWS[20:]),
        ([tmp_path / "test.jsonl", tmp_path / "train-0.jsonl"], "train", [*ROWS[20:], *ROWS[:9]]),
    ):
        assert list(open_source(given_files, split=split, streaming=True).rows) == expected
    with pytest.raises(
        DataError, match=r"--split train\[:3\]: a stream has no slices; use --split train --limit"
    ):
        open_source(tmp_path, split="train[:3]", streaming=True)


def test_a_saved_dataset_needs_no_streaming(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert open_source(tmp_path / "saved", streaming=True).length == 30


def test_values_of_several_types_are_streamed_as_they_are(tmp_path):
    rows = [
        *ROWS,
        {"prompt": 5, "chosen": ["x"], "rejected": None},
        {**ROWS[0], "tools": [{"b": 1, "a": {"x": 2.0}}]},
        {**ROWS[0], "tools": [{"a": {"x": 1}, "b": "2020-01-01"}], "late": True},
    ]
    read = list(open_source(write(tmp_path / "a.jsonl", rows), streaming=True).rows)
    assert [json.dumps(row["tools"]) for row in read[-2:]] == [json.dumps(row["tools"]) for row in rows[-2:]]
    assert [read[30][name] for name in ("prompt", "chosen", "rejected")] == [5, ["x"], None]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n{"chosen": "a', "line 2: not valid JSON"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n"x"\n', "line 2: str, not an object"),
        ("a.csv", b"chosen,rejected\na,b\n1,2,3,4\n", "a.csv"),
        ("a.parquet", b"PAR1 cut short PAR1", "a.parquet"),
    ],
)
def test_faults_of_a_streamed_file_are_told_in_one_line(tmp_path, capfd, name, text, words):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=words) as caught:
        list(open_source(tmp_path / name, streaming=True).rows)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_hub_name_that_cannot_be_streamed_is_refused(monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="offline, not found"):
        open_source("nobody/no-such-data-set", streaming=True)
    assert capfd.readouterr() == ("", "")


# A random order


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_shuffled_by_its_seed(kind):
    orders = [
        [row["prompt"] for row in open_source(streams(ROWS)[kind], shuffle_seed=seed).rows]
        for seed in (0, 0, 1)
    ]
    assert all(sorted(order) == sorted(row["prompt"] for row in ROWS) for order in orders)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [row["prompt"] for row in ROWS]
    part = open_source(streams(ROWS)[kind], shuffle_seed=0, limit=5)
    assert [row["prompt"] for row in part.rows] == orders[0][:5]


def test_rows_beyond_the_buffer_are_shuffled_in_too():
    rows = ({"prompt": str(at), "chosen": "a", "rejected": "b"} for at in range(2 * SHUFFLE_BUFFER))
    order = [int(row["prompt"]) for row in open_source(rows, shuffle_seed=0).rows]
    assert sorted(order) == list(range(2 * SHUFFLE_BUFFER))
    assert max(order[:SHUFFLE_BUFFER]) > SHUFFLE_BUFFER


# Memory


def peak_of_spooling(rows: int, kind: str, tmp_path) -> int:
    """Most bytes that Python and Arrow hold while rows are spooled."""

    def generate():
        for at in range(rows):
            text = f"{at} " + "word " * 20
            yield {"prompt": text, "chosen": text + "yes", "rejected": text + "no", "note": text * 3}

    if kind == "generator":
        data, options = generate(), {}
    else:
        data, options = tmp_path / f"{rows}.jsonl", {"streaming": kind == "streamed file"}
        with data.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in generate())
    pool = pa.default_memory_pool()
    pool.release_unused()
    before = pool.bytes_allocated()
    arrow = 0

    def look(_done: int) -> None:
        nonlocal arrow
        arrow = max(arrow, pool.bytes_allocated() - before)

    tracemalloc.start()
    try:
        source = open_source(data, **options)
        with spool_pairs(source, letters, window=256, progress=look, directory=tmp_path) as spool:
            assert spool.source_rows == rows
            spool.window(len(spool) - 1)
            look(rows)
        return tracemalloc.get_traced_memory()[1] + arrow
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "rows"), [("generator", (1000, 20_000)), ("streamed file", (2000, 6000))])
def test_memory_does_not_grow_with_the_data(tmp_path, kind, rows):
    few, many = (peak_of_spooling(number, kind, tmp_path) for number in rows)
    # A thousand rows are 1 MB of text and tokens; the file is read in blocks of 1 MB.
    assert many < few + 1_000_000, (few, many)


# Caches of streams


def build(reference, out, rows, **options):
    return tdpo.build_cache(reference, rows, out, shard_rows=8, quiet=True, **options)


def shards(reader):
    return [(shard.source_rows, shard.sha256) for shard in reader.manifest.shards]


def test_a_cache_of_a_stream_is_the_cache_of_its_rows(tmp_path, reference):
    whole = build(reference, tmp_path / "list", ROWS[:20])
    streamed = build(reference, tmp_path / "stream", iter(ROWS[:20]))
    assert shards(streamed) == shards(whole)
    assert streamed.manifest.identity == whole.manifest.identity
    assert streamed.manifest.source_rows == 20
    assert [rows for rows, _ in shards(streamed)] == [(0, 8), (8, 16), (16, 20)]


def test_a_stream_goes_on_where_its_build_was_cut_off(tmp_path, reference, monkeypatch):
    from tdpo.cache.writer import CacheWriter

    write_shard = CacheWriter.write_shard

    def cut_off(self, index, *arguments):
        if index == 2:
            raise KeyboardInterrupt
        return write_shard(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_shard", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build(reference, tmp_path / "c", iter(ROWS))
    assert len(tdpo.open_cache(tmp_path / "c", allow_incomplete=True).manifest.shards) == 2
    with pytest.raises(tdpo.CacheError, match=r"data\.content"):
        build(reference, tmp_path / "c", iter(ROWS[::-1]))
    resumed = build(reference, tmp_path / "c", iter(ROWS))
    assert [record.pair.row for record in resumed] == list(range(30))
    assert shards(resumed) == shards(build(reference, tmp_path / "whole", ROWS))


@pytest.mark.parametrize("kind", ["list", "stream"])
@pytest.mark.parametrize("options", [{"shuffle_seed": 5}, {"shuffle_seed": 5, "limit": 20}, {"limit": 4}, {}])
def test_rows_and_skipped_counts_follow_the_order_that_was_read(tmp_path, reference, kind, options):
    rows = [{**row, "chosen": None} if at in (3, 8) else row for at, row in enumerate(ROWS)]

    def data():
        return rows if kind == "list" else iter(rows)

    order = list(open_source(data(), **options).rows)
    missing = [at for at, row in enumerate(order) if row["chosen"] is None]
    reader = build(reference, tmp_path / "c", data(), max_skipped=0.3, **options)
    assert reader.manifest.source_rows == len(order)
    skipped = {reason: list(entry.first_rows) for reason, entry in reader.manifest.skipped.items()}
    assert skipped == ({"missing chosen": missing} if missing else {})
    found = {record.pair.row: record.pair.pair_id for record in reader}
    assert sorted([*found, *missing]) == list(range(len(order)))
    expected = tdpo.preview_build(reference, order, pairs=30, max_skipped=0.3, quiet=True).pairs
    assert found == {pair.row: pair.pair_id for pair in expected}
