"""A data set of the hub is read by its name, whole or streamed; the hub is a stand-in on this machine."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import hub_server

ROWS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(12)]

# huggingface_hub reads its environment once, when it is imported.
CLIENT = """
import json, sys
from tdpo.core.data.source import open_source
from tdpo.core.errors import DataError
for line in sys.stdin:
    name, options = json.loads(line)
    try:
        source = open_source(name, **options)
        answer = {"rows": list(source.rows), "length": source.length, "identity": source.identity}
    except DataError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Open ``me/pairs`` with options, where the stand-in is the hub."""
    with hub_server(tmp_path_factory.mktemp("hf")) as (hub, variables):
        repo = hub.repos["me/pairs"] = {"private": False, "branches": {}, "commits": {}}
        hub.commit(repo, "old", {"train.jsonl": lines(ROWS[:3])})
        files = {
            "train-0.jsonl": lines(ROWS[:7]),
            "train-1.jsonl": lines(ROWS[7:10]),
            "test.jsonl": lines(ROWS[10:]),
        }
        hub.commit(repo, "main", files)
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

        def read(name="me/pairs", **options):
            print(json.dumps([name, options]), file=client.stdin, flush=True)
            return json.loads(client.stdout.readline())

        read.environment = {**os.environ, **variables}
        read.commits = {branch: repo["branches"][branch] for branch in ("old", "main")}
        yield read
        client.stdin.close()
        client.wait(30)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_of_the_hub_is_read(read, streaming):
    found = read(streaming=streaming)
    assert found["rows"] == ROWS[:10]
    assert found["length"] == (None if streaming else 10)
    assert found["identity"]["source"] == "me/pairs"
    assert read(streaming=streaming, split="test")["rows"] == ROWS[10:]
    assert read(streaming=streaming, limit=8)["rows"] == ROWS[:8]
    shuffled = read(streaming=streaming, shuffle_seed=1)["rows"]
    assert sorted(shuffled, key=ROWS.index) == ROWS[:10] != shuffled
    assert read(streaming=streaming, column_map={"chosen": "rejected", "rejected": "chosen"})["rows"][0] == {
        "prompt": "question 0",
        "chosen": "no 0",
        "rejected": "yes 0",
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_a_revision_of_the_hub_is_read(read, streaming):
    assert read(streaming=streaming, revision="old")["rows"] == ROWS[:3]
    for branch, options in (("old", {"revision": "old"}), ("main", {})):
        for revision in (options, {"revision": read.commits[branch]}):
            identity = read(streaming=streaming, **revision)["identity"]
            assert identity["revision"] == read.commits[branch]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_hub_does_not_have_is_refused(read, streaming):
    assert "nobody/pairs: neither a local path" in read("nobody/pairs", streaming=streaming)["error"]
    for options in ({"split": "dev"}, {"revision": "new"}, {"config_name": "more"}):
        message = read(streaming=streaming, **options)["error"]
        assert message.startswith("me/pairs: ")
        assert "\n" not in message


def test_a_copy_of_the_hubs_data_is_the_same_data_offline(read, tmp_path):
    # A home of its own: without a revision, `datasets` offline takes the copy that was made last, of any.
    def in_own_home(**variables):
        done = subprocess.run(
            [sys.executable, "-c", CLIENT],
            input=json.dumps(["me/pairs", {}]) + "\n",
            env={**read.environment, "HF_HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(done.stdout)

    online = in_own_home()
    assert online["rows"] == ROWS[:10]
    assert in_own_home(HF_HUB_OFFLINE="1") == online
