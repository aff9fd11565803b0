"""Preference data is opened from where it lies, and what is wrong with it is said in one line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tdpo.core.data.source import open_source
from tdpo.core.errors import DataError

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
    assert source.rows[:] == {key: [row[key] for row in ROWS] for key in ROWS[0]}
    assert len(source) == 10
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
    assert open_source(path).rows[:] == {
        "prompt": ["1, 2", "null"],
        "chosen": ["3", "a\nb"],
        "rejected": ["NA", ""],
    }


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
    assert open_source(f"{tmp_path}/a*.jsonl").rows["prompt"][:] == [row["prompt"] for row in ROWS]
    assert "no file matches" in refusal(f"{tmp_path}/z*.jsonl")


def test_rows_in_memory_are_read():
    dataset = datasets.Dataset.from_list(ROWS)
    for given in (ROWS, dataset):
        assert open_source(given).rows[2] == ROWS[2]
    assert len(open_source(datasets.DatasetDict({"train": dataset}))) == 10
    assert "unknown split 'test'" in refusal(datasets.DatasetDict({"train": dataset}), split="test")
    assert "IterableDataset" in refusal(dataset.to_iterable_dataset())


def test_a_saved_dataset_is_read(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "two")
    assert open_source(tmp_path / "one").rows[2] == ROWS[2]
    source = open_source(tmp_path / "two", split="test")
    assert source.rows[0] == ROWS[1]
    assert [each["name"].split("/")[0] for each in source.identity["files"]] == ["test"]


def test_rows_are_memory_mapped(tmp_path):
    assert open_source(write(tmp_path / "a.jsonl")).rows.cache_files


def test_limit_takes_the_first_rows(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl"), limit=3)
    assert source.rows["prompt"][:] == ["question 0", "question 1", "question 2"]
    assert source.identity["rows"] == 3
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


def test_identity_of_rows_in_memory_is_their_content():
    one = open_source(ROWS).identity
    assert one == open_source([dict(row) for row in ROWS]).identity
    assert one["fingerprint"] != open_source(ROWS[::-1]).identity["fingerprint"]


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


def test_text_that_looks_like_dates_stays_text(tmp_path):
    rows = [{"prompt": "when?", "chosen": "2020-01-02", "rejected": "2020-01-03"}] * 3
    assert open_source(write(tmp_path / "a.jsonl", rows)).rows[0] == rows[0]


def test_lone_surrogates_do_not_stop_the_reading(tmp_path):
    rows = [*ROWS, {"prompt": "half an emoji \ud83d", "chosen": "a\x00b", "rejected": "\u202eש\U0001f600"}]
    for given in (write(tmp_path / "a.jsonl", rows), rows):
        last = open_source(given).rows[-1]
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
