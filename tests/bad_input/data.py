"""Data."""

import gzip
import json
import shutil

from .case import Case

PAIR = {"prompt": "the film", "chosen": " was great", "rejected": " was bad"}
TEMPLATE = "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>' }}{% endfor %}"


def build(more, dataset):
    return f"tdpo cache build --ref model --dataset {dataset} --out new{' ' + more if more else ''}"


def messages(*contents):
    return [
        {"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(contents)
    ]


def write(name, content):
    return lambda world: world.write(name, content)


def write_rows(name, *rows):
    return lambda world: world.rows(name, rows)


def cut_rows(world):
    good = [json.dumps(row) for row in world.good_rows(6)]
    world.write("cut.jsonl", "\n".join([*good[:3], '{"prompt": "a", "cho', *good[3:]]))


def cut_parquet(world):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(world.good_rows(20)), world.path("pairs.parquet"))
    world.cut("pairs.parquet", 0.9)


def damaged_parquet(world):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = world.path("pairs.parquet")
    pq.write_table(pa.Table.from_pylist(world.good_rows(20)), path)
    data = bytearray(path.read_bytes())
    data[-60:-8] = bytes(52)
    path.write_bytes(data)


def cut_gzip(world):
    data = gzip.compress(world.path("pairs.jsonl").read_bytes(), mtime=0)
    world.write("pairs.jsonl.gz", data[: len(data) // 2])


def gzip_under_another_name(world):
    world.write("packed.jsonl", gzip.compress(b"{}", mtime=0))


def two_kinds(world):
    world.rows("data/a.jsonl", [PAIR])
    world.write("data/b.csv", "prompt,chosen,rejected\na,b,c\n")


def split_files(world):
    for name in ("train", "test"):
        world.rows(f"data/{name}.jsonl", [PAIR])


def damaged_saved(world):
    import datasets

    datasets.Dataset.from_list(world.good_rows(4)).save_to_disk(world.path("saved"))
    shutil.rmtree(world.path("saved"), ignore_errors=True)
    world.write("saved/state.json", "{}")


def half_unusable(world):
    world.rows("half.jsonl", [*world.good_rows(4), {**PAIR, "chosen": None}, {**PAIR, "rejected": " "}])


def long_row(world):
    world.rows("long.jsonl", [PAIR, {**PAIR, "chosen": " great film" * 80}])


def chat(world):
    world.rows("chat.jsonl", [{"chosen": messages("hi", "good"), "rejected": messages("hi", "bad")}])


def chat_with(template):
    def prepare(world):
        chat(world)
        world.write("template.jinja", template)

    return prepare


def no_room_for_temporaries(world):
    folder = world.folder / "gone"
    world.env(TMPDIR=str(folder))
    import tempfile

    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    world.during.callback(setattr, tempfile, "tempdir", before)


CASES = (
    Case("a misspelt file", build("", "pears.jsonl"), r"no such file.*did you mean pairs\.jsonl"),
    Case("an empty name", build("", "''"), "name of the data is empty"),
    Case("neither a file nor a data set of the hub", build("", "nobody/nothing"), "neither a local path nor"),
    Case(
        "a JSON Lines file cut inside a row", build("", "cut.jsonl"), "cut.jsonl, line 4: not valid", cut_rows
    ),
    Case(
        "a row that is no object",
        build("", "list.jsonl"),
        "list.jsonl, line 2: list, not an object",
        write("list.jsonl", json.dumps(PAIR) + '\n["a", "b"]\n'),
    ),
    Case(
        "a JSON list that does not end",
        build("", "list.json"),
        "list.json, line 2: not valid JSON",
        write("list.json", f"[{json.dumps(PAIR)},\n{{"),
    ),
    Case(
        "text under a Parquet file's name",
        build("", "pairs.parquet"),
        "not a Parquet file",
        write("pairs.parquet", json.dumps(PAIR)),
    ),
    Case("a Parquet file cut short", build("", "pairs.parquet"), "cut short", cut_parquet),
    Case(
        "a Parquet file with a damaged footer", build("", "pairs.parquet"), "pairs.parquet", damaged_parquet
    ),
    Case(
        "binary data under a JSON file's name",
        build("", "model.jsonl"),
        "model.jsonl: binary data",
        write("model.jsonl", b'\x10\x00\x00\x00{"a": 1}'),
    ),
    Case(
        "text in UTF-16",
        build("", "u16.jsonl"),
        "UTF-16",
        write("u16.jsonl", json.dumps(PAIR).encode("utf-16")),
    ),
    Case(
        "text in Latin-1",
        build("", "latin.csv"),
        "latin.csv, line 2: not UTF-8",
        write("latin.csv", b"prompt,chosen,rejected\nle,caf\xe9,th\xe9\n"),
    ),
    Case("an empty file", build("", "empty.jsonl"), "the file is empty", write("empty.jsonl", "")),
    Case(
        "a file of blank lines",
        build("", "blank.jsonl"),
        "but for white space",
        write("blank.jsonl", "\n \n"),
    ),
    Case(
        "a kind of file that is not read",
        build("", "pairs.txt"),
        r"unknown extension",
        write("pairs.txt", "a"),
    ),
    Case(
        "a CSV file with a name twice in its header",
        build("", "twice.csv"),
        "must name every column once",
        write("twice.csv", "prompt,chosen,chosen\na,b,c\n"),
    ),
    Case(
        "a CSV file with nothing below its header",
        build("", "header.csv"),
        "no rows below",
        write("header.csv", "prompt,chosen,rejected\n"),
    ),
    Case("a gzip file cut short", build("", "pairs.jsonl.gz"), "damaged gzip", cut_gzip),
    Case(
        "a gzip file without .gz",
        build("", "packed.jsonl"),
        r"give its name the ending \.gz",
        gzip_under_another_name,
    ),
    Case(
        "text under a gzip file's name", build("", "a.jsonl.gz"), "not a gzip file", write("a.jsonl.gz", "{}")
    ),
    Case(
        "a file given twice",
        build("--dataset ./pairs.jsonl", "pairs.jsonl"),
        "pairs.jsonl: given twice",
    ),
    Case(
        "files of several kinds",
        build("--dataset a.csv", "pairs.jsonl"),
        "of several kinds",
        write("a.csv", "a\nb\n"),
    ),
    Case(
        "a file and a data set of the hub",
        build("--dataset owner/name", "pairs.jsonl"),
        "several names must all be local",
    ),
    Case("a pattern that matches nothing", build("", "'data/*.jsonl'"), "no file matches this pattern"),
    Case(
        "a folder without data", build("", "notes"), "no data file in this folder", write("notes/a.txt", "a")
    ),
    Case("a folder of several kinds of files", build("", "data"), "files of several kinds", two_kinds),
    Case("a split that is not there", build("--split dev", "data"), "unknown split 'dev'", split_files),
    Case("a split of a single file", build("--split test", "pairs.jsonl"), "unknown split 'test'"),
    Case(
        "a damaged folder of save_to_disk", build("", "saved"), "datasets can load from disk", damaged_saved
    ),
    Case(
        "no column with the two sides",
        build("", "qa.jsonl"),
        "no column 'chosen'; found 'question', 'answer'.*--column-map",
        write_rows("qa.jsonl", {"question": "a", "answer": "b"}),
    ),
    Case(
        "--column-map with a column that the data lacks",
        build("--column-map prompt=promt", "pairs.jsonl"),
        "no column 'promt'.*did you mean 'prompt'",
    ),
    Case(
        "--column-map with a name that tdpo lacks",
        build("--column-map winner=chosen", "pairs.jsonl"),
        "tdpo has no column 'winner'",
    ),
    Case(
        "both sides from one column",
        build("--column-map rejected=chosen", "pairs.jsonl"),
        "takes 'chosen' and 'rejected' from one column",
    ),
    Case(
        "no row with text on both sides",
        build("", "numbers.jsonl"),
        "none of the first 1 rows has text or messages on both sides",
        write_rows("numbers.jsonl", {"prompt": "a", "chosen": 1, "rejected": 2}),
    ),
    Case(
        "too many rows that cannot be used",
        build("", "half.jsonl"),
        "2 of 6 rows.*--max-skipped",
        half_unusable,
    ),
    Case(
        "no row that can be used",
        build("--max-skipped 1", "same.jsonl"),
        "1 of 1 rows .100.*identical sides",
        write_rows("same.jsonl", {**PAIR, "rejected": PAIR["chosen"]}),
    ),
    Case(
        "a row over the limit, with --truncation error",
        build("--truncation error --max-length 64", "long.jsonl"),
        "row 1: .* more than --max-length 64",
        long_row,
    ),
    Case(
        "--limit 0",
        build("--limit 0", "pairs.jsonl"),
        "limit",
    ),
    Case("conversations without a chat template", build("", "chat.jsonl"), "chat template", chat),
    Case(
        "a chat template with a mistake in it",
        build("--chat-template template.jinja", "chat.jsonl"),
        "template",
        chat_with("{% for m in messages %}{{ m.content }"),
    ),
    Case(
        "a chat template that refuses every row",
        build("--chat-template template.jinja", "chat.jsonl"),
        "template",
        chat_with("{{ raise_exception('only system messages, please') }}"),
    ),
    Case(
        "a chat template whose prompt is no prefix of the dialogue",
        build("--chat-template template.jinja", "chat.jsonl"),
        "template",
        chat_with("{{ messages | length }}{{ messages[-1].content }}"),
    ),
    Case(
        "no such chat template",
        build("--chat-template templat.jinja", "chat.jsonl"),
        "--chat-template templat.jinja: cannot be read",
        chat,
    ),
    Case("no room for temporary files", build("", "pairs.jsonl"), "TMPDIR", no_room_for_temporaries),
)
