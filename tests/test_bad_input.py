"""Mistakes: one line on stderr that says what, where and what to do; exit code 2; nothing lost.

The mistakes themselves are listed in tests/bad_input, and what they are told in docs/errors.md.
"""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_input import CASES, GROUPS
from bad_input.case import Materials, Store
from bad_input.provoke import PROGRESS, content, page, prepared, provoke, row, run_command
from support import run_tdpo, write_pairs

import tdpo

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


def name(case):
    return re.sub(r"\W+", "-", case.title)


@pytest.fixture(scope="session")
def materials(tmp_path_factory, reference, pairs, cache):
    store = Store(tmp_path_factory.mktemp("store"))
    yield Materials(reference, pairs, cache, store)
    store.close()


@pytest.fixture(scope="session")
def provoked(materials):
    """The outcome of a case, which is run only once."""
    outcomes = {}

    def outcome(case):
        if not case.possible:
            pytest.skip(f"needs {', '.join(case.needs)}")
        if case not in outcomes:
            outcomes[case] = provoke(case, materials)
        return outcomes[case]

    return outcome


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_mistake_gets_one_line_and_costs_nothing(provoked, case):
    outcome = provoked(case)
    assert outcome.code == 2, outcome.stderr
    assert len(outcome.lines) == 1, outcome.stderr
    assert outcome.lines[0].startswith("tdpo: ")
    assert re.search(case.says, outcome.lines[0]), outcome.lines[0]
    assert outcome.changed == ()


def test_every_case_has_a_name_of_its_own():
    assert len({name(case) for case in CASES}) == len(CASES)


def test_the_page_lists_what_is_said(provoked):
    """If this fails: python tests/bad_input_table.py writes the page again."""
    there = PAGE.read_text(encoding="utf-8")
    possible = [case for case in CASES if case.possible]
    rows = {case: row(case, provoked(case)) for case in possible}
    lines = there.splitlines()
    assert [line for line in rows.values() if line not in lines] == []
    if len(possible) == len(CASES):
        assert there == page(GROUPS, rows)


# One of each kind: what other libraries print by themselves is seen only in a process of its own.
ALONE = (
    "a Parquet file with a damaged footer",
    "weights of another shape than config.json says",
    "a shard damaged inside",
    "a misspelt option",
    "a policy far from the reference",
)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.title in ALONE], ids=name)
def test_a_process_says_no_more_than_that_line(provoked, materials, case):
    with prepared(case, materials) as folder:
        result = run_tdpo(*shlex.split(case.command)[1:], cwd=folder, check=False)
    said = [line for line in result.stderr.splitlines() if not PROGRESS.match(line)]
    assert result.returncode == 2
    assert [line.replace(f"{folder}/", "") for line in said] == provoked(case).lines


@pytest.fixture
def folder(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(reference)
    return tmp_path


def test_what_is_advised_works(folder, pairs, cache):
    """The commands that messages name do mend what they are said of."""
    assert run_command(f"tdpo cache build --ref model --dataset {pairs} --out c --head 0 --tail 0").code == 0
    assert run_command("tdpo fit --plugin dpo --cache c --output run --max-steps 1").code == 0
    assert run_command(f"tdpo cache build --ref model --dataset {pairs} --out c").code == 2
    assert run_command(f"tdpo cache build --ref model --dataset {pairs} --out c --overwrite").code == 0
    assert run_command("tdpo fit --plugin tdpo2 --cache c --output run --max-steps 1").code == 2
    assert run_command("tdpo fit --plugin tdpo2 --cache c --output run --max-steps 1 --overwrite").code == 0


def test_too_many_unusable_rows_stop_the_build_before_the_model_is_loaded(folder):
    """Its weights are of no use, which nobody notices."""
    broken = folder / "broken"
    broken.mkdir()
    for path in (folder / "model").iterdir():
        (broken / path.name).write_bytes(
            b"no weights" if path.suffix == ".safetensors" else path.read_bytes()
        )
    write_pairs(folder / "half.jsonl", 4)
    with (folder / "half.jsonl").open("a") as file:
        file.write('{"prompt": "a", "chosen": null, "rejected": "b"}\n')
    outcome = run_command("tdpo cache build --ref broken --dataset half.jsonl")
    assert outcome.code == 2
    assert "missing chosen" in outcome.stderr
    assert (
        "does not load"
        in run_command("tdpo cache build --ref broken --dataset half.jsonl --max-skipped 1").stderr
    )


def wait_for_a_shard(builder, folder):
    while builder.poll() is None and not list(folder.glob("pairs-*.parquet")):
        time.sleep(0.01)


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(folder):
    write_pairs(folder / "pairs.jsonl", 1500)
    command = "tdpo cache build --ref model --dataset pairs.jsonl --shard-rows 8"
    builder = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_a_shard(builder, folder / "tdpo-cache")
    builder.send_signal(signal.SIGINT)
    _, err = builder.communicate(timeout=120)
    said = [line for line in err.splitlines() if line and not PROGRESS.match(line)]
    assert builder.returncode == 130, err
    assert len(said) == 1
    assert re.search("^tdpo: interrupted; what was finished is kept, and the same command", said[0])
    partial = tdpo.open_cache("tdpo-cache", allow_incomplete=True)
    finished = {path: checksum for path, checksum in content(folder).items() if path.endswith(".parquet")}
    assert 0 < len(partial.manifest.shards) < partial.manifest.shard_count
    assert not list(folder.rglob("*.tmp"))
    assert run_command(command).code == 0
    assert finished.items() <= content(folder).items()
    assert tdpo.open_cache("tdpo-cache").manifest.source_rows == 1500


def test_a_closed_pipe_is_no_error():
    """``tdpo ... | head`` ends without a word."""
    shell = f"{shlex.quote(sys.executable)} -m tdpo plugins list --json | true"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}"], capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1)
    assert result.stderr == ""
