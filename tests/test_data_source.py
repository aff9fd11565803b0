"""Preference data is opened from where it lies, and what is wrong with it is said in one line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tdpo.core.data.source import open_source
from tdpo.core.errors import DataError

ONE_TWO_THREE = [("a", 0, 2), ("b", 2, 5), ("c", 5, 10)]
ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(10)]
HH = {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go away"}
ASK, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "a"), ("assistant", "b"))
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def write(path: Path, rows=ROWS) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        open_source(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# Where data may lie


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "odd [1] name.jsonl"])
def test_json_lines_are_read(tmp_path, name):
    source = open_source(write(tmp_path / name))
    assert list(source.rows) == ROWS
    assert len(source) == source.length == 10
    assert source.form == "explicit"


def test_a_json_list_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert open_source(path).rows[3] == ROWS[3]


def test_parquet_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    assert open_source(path).rows[3] == ROWS[3]


def test_csv_is_text_whatever_it_looks_like(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\n"1, 2",3,NA\nnull,"a\nb",\n')
    assert list(open_source(path).rows) == [
        {"prompt": "1, 2", "chosen": "3", "rejected": "NA"},
        {"prompt": "null", "chosen": "a\nb", "rejected": ""},
    ]


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    write(tmp_path / "train-0.jsonl", ROWS[:3])
    write(tmp_path / "train-1.jsonl", ROWS[3:5])
    write(tmp_path / "test.jsonl", ROWS[5:])
    (tmp_path / "README.md").write_text("about")
    assert len(open_source(tmp_path)) == 5
    assert len(open_source(tmp_path, split="test")) == 5
    assert len(open_source(tmp_path, split="train[:2]")) == 2
    assert "unknown split 'dev'" in refusal(tmp_path, split="dev")
    assert "'test', 'train'" in refusal(tmp_path, split="dev")


def test_a_folder_in_the_hubs_form_has_splits_of_any_name(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train_prefs-00000-of-00002.jsonl", ROWS[:3])
    write(tmp_path / "data" / "train_prefs-00001-of-00002.jsonl", ROWS[3:7])
    write(tmp_path / "data" / "train_sft-00000-of-00001.jsonl", ROWS[:2])
    assert len(open_source(tmp_path, split="train_prefs")) == 7
    assert len(open_source(tmp_path, split="train_sft")) == 2
    assert "'train_prefs', 'train_sft'" in refusal(tmp_path, split="train")


def test_a_folder_without_split_names_is_all_train(tmp_path):
    write(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.jsonl", ROWS[3:])
    source = open_source(tmp_path)
    assert len(source) == 10
    assert [each["name"] for each in source.identity["files"]] == ["a.jsonl", "sub/b.jsonl"]


def test_a_glob_is_read(tmp_path):
    write(tmp_path / "a1.jsonl", ROWS[:3])
    write(tmp_path / "a2.jsonl", ROWS[3:])
    write(tmp_path / "b.jsonl")
    assert list(open_source(f"{tmp_path}/a*.jsonl").rows) == ROWS
    assert "no file matches" in refusal(f"{tmp_path}/z*.jsonl")


def test_rows_in_memory_are_read():
    dataset = datasets.Dataset.from_list(ROWS)
    for given in (ROWS, dataset):
        assert open_source(given).rows[2] == ROWS[2]
    assert len(open_source(datasets.DatasetDict({"train": dataset}))) == 10
    assert "unknown split 'test'" in refusal(datasets.DatasetDict({"train": dataset}), split="test")
    assert "the data in memory is int: give a path" in refusal(3)
    assert "the data in memory: row 1 is str" in refusal([ROWS[0], "row"])
    assert "no rows" in refusal([])
    assert "no data is named" not in refusal([])


def test_formats_of_a_dataset_do_not_matter():
    dataset = datasets.Dataset.from_list(ROWS)
    assert list(open_source(dataset.with_format("numpy")).rows) == ROWS


def test_rows_in_memory_stay_as_they_are():
    """Arrow would give the objects of a column one order of keys and one type."""
    rows = [
        {"chosen": "a b", "rejected": "a c", "tools": [{"x": 1, "y": {"b": 1, "a": 2.5}}]},
        {"chosen": "a b", "rejected": "a c", "tools": [{"y": {"a": 1, "b": 2}, "x": 1.5}]},
    ]
    for row, read in zip(rows, open_source(rows).rows, strict=True):
        assert json.dumps(read) == json.dumps(row)


def test_objects_in_files_stay_as_they_are(tmp_path):
    rows = [
        {**ROWS[0], "tools": [{"x": 1, "y": {"b": 1, "a": 2.5}}]},
        {**ROWS[1], "tools": [{"y": {"a": 1, "b": 2}, "x": 1.5}]},
        {**ROWS[2], "tools": [{"y": {"a": 1, "b": 2}, "x": 1}]},
    ]
    for given in (rows, [rows[2], rows[1]], [rows[1], {**rows[2], "tools": [{"x": 1, "y": rows[2]}]}]):
        read = list(open_source(write(tmp_path / "a.jsonl", given)).rows)
        assert [json.dumps(row) for row in read] == [json.dumps(row) for row in given]


# Several files


def test_several_files_are_read_in_the_order_given(tmp_path):
    one, two, three = (write(tmp_path / f"{name}.jsonl", ROWS[a:b]) for name, a, b in ONE_TWO_THREE)
    source = open_source([three, str(one), two])
    assert list(source.rows) == [*ROWS[5:], *ROWS[:2], *ROWS[2:5]]
    assert [each["name"] for each in source.identity["files"]] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    assert source.identity["source"] == [str(three), str(one), str(two)]
    assert open_source([one]).identity == open_source(one).identity
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "x.jsonl", ROWS[:1])
    assert len(open_source([f"{tmp_path}/*.jsonl", tmp_path / "sub"])) == 11


def test_files_beside_and_below_each_other_keep_names_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.jsonl")
    write(tmp_path / "sub" / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    identity = open_source(["a.jsonl", tmp_path / "sub" / "a.jsonl"]).identity
    assert [each["name"] for each in identity["files"]] == ["a.jsonl", "sub/a.jsonl"]


def test_several_files_must_go_together(tmp_path):
    one = write(tmp_path / "a.jsonl")
    other = tmp_path / "b.csv"
    other.write_text("chosen,rejected\na,b\n")
    assert "several kinds (a.jsonl and b.csv)" in refusal([one, other])
    assert f"{one}: given twice" in refusal([one, f"{tmp_path}/*.jsonl"])
    assert "owner/name: no such file; several names must all be local files" in refusal([one, "owner/name"])
    assert "no such file" in refusal([one, tmp_path / "nowhere.jsonl"])
    assert "unknown split 'test'" in refusal([one], split="test")


def test_parquet_files_need_agree_on_the_columns_that_are_used_only(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    datasets.Dataset.from_list([{**ROWS[0], "x": 1}]).to_parquet(paths[0])
    datasets.Dataset.from_list([{"y": "z", **ROWS[1]}]).to_parquet(paths[1])
    for streaming in (False, True):
        assert list(open_source(paths, streaming=streaming).rows) == ROWS[:2]
        assert list(open_source(paths[::-1], streaming=streaming).rows) == ROWS[1::-1]
    datasets.Dataset.from_list([{"chosen": "a", "rejected": "b"}]).to_parquet(paths[1])
    message = refusal(paths)
    assert "b.parquet: its columns (chosen, rejected) differ from a.parquet's" in message


# A random order


def test_a_shuffle_seed_gives_a_permutation_of_the_rows(tmp_path):
    rows = [{"prompt": str(at), "chosen": "a", "rejected": "b"} for at in range(300)]
    dataset = datasets.Dataset.from_list(rows)
    orders = [
        [row["prompt"] for row in open_source(data, shuffle_seed=seed).rows]
        for data in (rows, dataset, write(tmp_path / "a.jsonl", rows))
        for seed in (0, 0, 1)
    ]
    assert all(sorted(order, key=int) == [row["prompt"] for row in rows] for order in orders)
    assert orders[0] == orders[1] == orders[3] == orders[6]
    assert orders[0] != orders[2] == orders[5] == orders[8]
    # As anyone can repeat it with datasets alone.
    assert orders[0] == dataset.shuffle(seed=0)["prompt"][:]


def test_a_limit_takes_the_first_of_the_shuffled_order():
    dataset = datasets.Dataset.from_list(ROWS)
    whole = list(open_source(dataset, shuffle_seed=4).rows)
    for data in (dataset, ROWS, dataset.with_format("numpy")):
        part = open_source(data, shuffle_seed=4, limit=3)
        assert list(part.rows) == whole[:3] != ROWS[:3]
    assert part.identity["shuffle_seed"] == 4
    assert "shuffle_seed" not in open_source(ROWS).identity


def test_every_row_is_as_likely_to_be_taken():
    rows = [{"prompt": str(at), "chosen": "a", "rejected": "b"} for at in range(20)]
    counts = dict.fromkeys(range(20), 0)
    for seed in range(400):
        for row in open_source(rows, shuffle_seed=seed, limit=5).rows:
            counts[int(row["prompt"])] += 1
    assert 60 < min(counts.values()) <= max(counts.values()) < 140  # 100 expected, 8.7 the deviation


def test_a_saved_dataset_is_read(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "two")
    assert open_source(tmp_path / "one").rows[2] == ROWS[2]
    source = open_source(tmp_path / "two", split="test")
    assert source.rows[0] == ROWS[1]
    assert [each["name"].split("/")[0] for each in source.identity["files"]] == ["test"]


def test_rows_are_memory_mapped(tmp_path):
    assert open_source(write(tmp_path / "a.jsonl")).rows.rows.cache_files


def test_limit_takes_the_first_rows(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl"), limit=3)
    assert [row["prompt"] for row in source.rows] == ["question 0", "question 1", "question 2"]
    assert len(source) == 3
    assert len(open_source(ROWS, limit=99)) == 10
    assert "limit is 0" in refusal(ROWS, limit=0)


# Identity


def test_identity_follows_the_content(tmp_path):
    path = write(tmp_path / "a.jsonl")
    one = open_source(path).identity
    assert one == open_source(path).identity
    assert one["source"] == str(path)
    assert one["files"][0]["bytes"] == path.stat().st_size
    assert json.loads(json.dumps(one)) == one
    write(path, ROWS[::-1])
    assert open_source(path).identity["files"][0]["sha256"] != one["files"][0]["sha256"]
    assert open_source(path).rows[0] == ROWS[-1]


# Columns and forms


def test_a_column_map_names_columns(tmp_path):
    rows = [{"question": "q", "prompt": "other", "a": "x", "b": "y", "score": 1}]
    source = open_source(rows, column_map={"prompt": "question", "chosen": "a", "rejected": "b"})
    assert source.rows[0] == {"prompt": "q", "chosen": "x", "rejected": "y"}
    swapped = open_source(ROWS, column_map={"chosen": "rejected", "rejected": "chosen"})
    assert swapped.rows[0]["chosen"] == "no 0"


def test_faults_of_the_column_map_are_named():
    assert "did you mean 'prompt'" in refusal(ROWS, column_map={"promt": "prompt"})
    assert "did you mean 'chosen'" in refusal(ROWS, column_map={"chosen": "choosen"})
    assert "from one column" in refusal(ROWS, column_map={"rejected": "chosen"})
    assert "two purposes" in refusal(ROWS, column_map={"prompt": "chosen"})


def test_missing_columns_are_named_with_those_found():
    message = refusal([{"question": "q", "chosen": "a", "worse": "b"}])
    assert "no column 'rejected'" in message
    assert "'question', 'chosen', 'worse'" in message
    assert "--column-map rejected=COLUMN" in message


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (ROWS[0], "explicit"),
        ({"chosen": "the sky is blue", "rejected": "the sky is green"}, "implicit"),
        (HH, "hh"),
        ({**HH, "prompt": "p"}, "explicit"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "conversational"),
        ({"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "conversational"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, "conversational"),
        ({"prompt": [ASK], "chosen": "a", "rejected": "b"}, "conversational"),
        ({"prompt": "hi", "chosen": GOOD, "rejected": BAD}, "conversational"),
    ],
)
def test_the_form_is_told_from_the_rows(row, form):
    gaps = [dict.fromkeys(row), {**row, "chosen": None}]
    assert open_source([*gaps, row, row]).form == form


def test_data_without_usable_rows_is_refused():
    message = refusal([{"chosen": 3, "rejected": [{"from": "gpt", "value": "x"}]}])
    assert "row 0: 'chosen' is int, 'rejected' is a list of {from, value}" in message


# Data that the fast loader cannot read


def test_values_of_several_types_are_read(tmp_path):
    rows = [*ROWS, {"prompt": 5, "chosen": ["x"], "rejected": None}]
    assert open_source(write(tmp_path / "a.jsonl", rows)).rows[-1] == rows[-1]
    assert open_source(rows).rows[-1] == rows[-1]


def test_fields_that_appear_after_the_first_block_are_read(tmp_path):
    rows = [{"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "note": "x" * 4000}] * 3000
    rows += [{"chosen": [{**ASK, "name": "n"}, GOOD], "rejected": [ASK, BAD], "late": 1}]
    source = open_source(write(tmp_path / "a.jsonl", rows))
    assert source.rows[-1] == {"chosen": rows[-1]["chosen"], "rejected": rows[-1]["rejected"]}


MIXED = {
    "prompt": "p",
    "chosen": {"role": "assistant", "content": ""},
    "rejected": {"role": "assistant", "content": "\ud83d"},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("row", [ROWS[0], MIXED, {"prompt": ["a", "b"], "chosen": "a", "rejected": "\ud83d"}])
@pytest.mark.parametrize(
    "shape", ["{0}\n", "\n{0}\n \n{0}\n", "\ufeff{0}\r\n{0}", "[{0}]", "\ufeff [{0},\n{0}]\n"]
)
def test_one_row_is_one_row_however_the_file_is_laid_out(tmp_path, streaming, row, shape):
    """A single object is no table of columns; blank lines are no rows."""
    text = shape.format(json.dumps(row))
    (tmp_path / "a.json").write_text(text, newline="")
    good = {"chosen": "x", "rejected": "y"}
    (tmp_path / "b.json").write_text(json.dumps(good))
    rows = list(open_source([tmp_path / "a.json", tmp_path / "b.json"], streaming=streaming).rows)
    assert len(rows) == shape.count("{0}") + 1
    assert json.dumps(rows[0]).replace("ufffd", "ud83d") == json.dumps(row)


def test_a_slice_of_a_file_with_values_of_several_types_is_read(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [*ROWS, {"prompt": 5, "chosen": ["x"], "rejected": None, "tools": "[]"}]
    )
    assert [row["prompt"] for row in open_source(path, split="train[9:]").rows] == ["question 9", 5]
    assert len(open_source(path, split="train[:50%]+train[-1:]")) == 7
    write(path, [*ROWS[::-1], {"prompt": 5, "chosen": ["x"], "rejected": None, "tools": "[]"}])
    assert open_source(path).rows[0] == {**ROWS[9], "tools": None}


def test_text_that_looks_like_dates_stays_text(tmp_path):
    rows = [{"prompt": "when?", "chosen": "2020-01-02", "rejected": "2020-01-03"}] * 3
    assert open_source(write(tmp_path / "a.jsonl", rows)).rows[0] == rows[0]


def test_lone_surrogates_do_not_stop_the_reading(tmp_path):
    rows = [*ROWS, {"prompt": "half an emoji \ud83d", "chosen": "a\x00b", "rejected": "\u202eש\U0001f600"}]
    for given in (write(tmp_path / "a.jsonl", rows), rows):
        last = open_source(given).rows[len(rows) - 1]
        assert last["prompt"].startswith("half an emoji")
        assert (last["chosen"], last["rejected"]) == (rows[-1]["chosen"], rows[-1]["rejected"])


# Faults of files


def test_files_that_are_not_there_are_named(tmp_path):
    write(tmp_path / "prefs.jsonl")
    assert "did you mean prefs.jsonl?" in refusal(tmp_path / "pref.jsonl")
    assert "no such file" in refusal(tmp_path / "nowhere" / "x.jsonl")
    assert "no such file" in refusal("./nowhere")
    assert "name of the data is empty" in refusal("")
    (tmp_path / "sub").mkdir()
    assert "no data file" in refusal(tmp_path / "sub")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"hello", "unknown extension '.txt'"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b" \n\n", "the file is empty but for white space"),
        ("a.json", b"[]", "no rows"),
        ("a.jsonl", bytes(range(256)), "binary data"),
        ("a.jsonl", '{"a":1}'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"chosen": "\xff\xfe"}\n', "line 1: not UTF-8"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n{"chosen": "a', "line 2: not valid JSON"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n\n"text"\n', "line 3: str, not an object"),
        ("a.jsonl", b"hello there\n", "each line must be one whole JSON object"),
        ("a.json", b'[\n{"chosen": "a"},\n{"chosen" "a"}]', "line 3: not valid JSON"),
        ("a.json", b'["a", "b"]', "no column 'chosen'"),
        ("a.json", b'[{"chosen": "a", "rejected": "b"}, 3]', "item 2: int, not an object"),
        ("a.parquet", b"not parquet", "not a Parquet file"),
        ("a.parquet", b"PAR1 cut short PAR1", "cannot read this as parquet"),
        ("a.jsonl.gz", b"plain", "not a gzip file"),
        ("a.jsonl", gzip.compress(b"{}"), "ending .gz"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 9)[:20], "damaged gzip"),
        ("a.csv", b"1,2,3\n4,5,6\n", "no column 'chosen'; found '1', '2', '3'"),
        ("a.csv", b"chosen,,rejected\na,b,c\n", "must name every column"),
        ("a.csv", b"chosen,rejected\na,b\n1,2,3,4\n", "cannot read this as csv"),
        ("a.csv", b"chosen,rejected\n", "no rows"),
        ("a.csv", b"chosen,rejected\na,\xff\n", "line 2: not UTF-8"),
        ("a.csv", b"chosen,rejected\na,\xe2\x82", "line 2: not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, capfd, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert words in message
    assert str(path) in message
    assert capfd.readouterr() == ("", "")


def test_files_of_several_kinds_are_refused(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_text("chosen,rejected\na,b\n")
    assert "several kinds (a.jsonl, b.csv)" in refusal(tmp_path)
    assert "several kinds (a.jsonl and b.csv)" in refusal(f"{tmp_path}/*")


@pytest.mark.parametrize("place", ["file", "memory"])
def test_parquet_text_that_is_not_utf8_is_refused_with_its_row_and_column(tmp_path, place):
    offsets = pa.py_buffer(np.array([0, *np.arange(1, 301), 301], np.int32).tobytes())
    text = pa.Array.from_buffers(pa.string(), 301, [None, offsets, pa.py_buffer(b"a" * 299 + b"\xffb")])
    table = pa.table({"chosen": text, "rejected": ["y"] * 301, "note": text})
    pq.write_table(table, tmp_path / "a.parquet")
    given = tmp_path / "a.parquet" if place == "file" else datasets.Dataset(table)
    source = open_source(given)
    with pytest.raises(DataError, match=r"row 299 in column 'chosen': not UTF-8 text \(byte 0xff\)"):
        list(source.rows)
    assert len(list(open_source(given, limit=299).rows)) == 299


def test_text_that_is_not_utf8_in_a_stream_is_refused(tmp_path):
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"chosen": text, "rejected": ["y"] * 2}), tmp_path / "a.parquet")
    assert "not UTF-8 text (byte 0xff)" in refusal(tmp_path / "a.parquet", streaming=True)


def test_csv_files_must_agree_on_their_columns(tmp_path):
    (tmp_path / "a.csv").write_text("chosen,rejected\na,b\n")
    (tmp_path / "b.csv").write_text("rejected,chosen\na,b\n")
    assert "b.csv, line 1: columns rejected, chosen differ from a.csv's" in refusal(tmp_path)


def test_a_single_file_has_only_the_split_train(tmp_path):
    assert "unknown split 'test'" in refusal(write(tmp_path / "a.jsonl"), split="test")


def test_a_hub_name_that_cannot_be_reached_is_refused(monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert "offline, not found" in refusal("nobody/no-such-data-set")
    assert capfd.readouterr() == ("", "")


def test_opening_data_imports_no_torch(tmp_path):
    path = write(tmp_path / "a.jsonl")
    code = (
        "import sys; from tdpo.core.data.source import open_source; import tdpo.core.data.spool;"
        f"import tdpo.core.data.pairing; assert 'datasets' not in sys.modules; open_source({str(path)!r});"
        "assert 'torch' not in sys.modules"
    )
    env = os.environ | {"HF_DATASETS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stderr) == (0, "")
