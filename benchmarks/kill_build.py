"""Kill one build at random instants with SIGKILL, resume it each time, and compare with a build left alone.

    python benchmarks/kill_build.py                    # 50 kills
    python benchmarks/kill_build.py --kills 8 --rows 160

Most builds are forked from a process that has imported everything, so that a kill costs a second and not
ten; ``--cli`` of the kills go to ``python -m tdpo cache build`` itself. Half of the kills come while a build
starts (imports, data, tokenising, loading the reference), the others after its first shard, at random
instants of the time that its share of the shards takes: so all of them fall on one build. After each kill the
cache is opened and every shard in its ledger held against its checksum. Exits with 1 where anything was lost
or differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
from workload import SHAPES, make_model, make_pairs, make_tokenizer, write_text

import tdpo
import tdpo.core.caching.build
import tdpo.core.scoring.scorer

SHAPE = "d=32, 2 layers, V=1k"
SHARD_ROWS = 4
BAD_ROWS = 16
"""One row in so many has an empty side, and is skipped."""


def prepare(folder: Path, rows: int) -> None:
    """Save a small reference and write the data."""
    make_model(SHAPE).save_pretrained(folder / "model")
    make_tokenizer(SHAPES[SHAPE]["vocab"]).save_pretrained(folder / "model")
    path = write_text(make_pairs("short", rows, SHAPES[SHAPE]["vocab"]), folder / "all.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[::BAD_ROWS]:
        line["rejected"] = ""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def build(folder: Path, out: Path) -> None:
    """Build the cache, or go on with it."""
    datasets.disable_progress_bars()
    tdpo.build_cache(
        folder / "model", folder / "pairs.jsonl", out, shard_rows=SHARD_ROWS, max_skipped=0.2, quiet=True
    )


def start_forked(folder: Path, out: Path) -> int:
    """Begin a build in a child; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
            build(folder, out)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid


def start_cli(folder: Path, out: Path) -> int:
    """Begin a build by the command line."""
    command = ["cache", "build", "--ref", folder / "model", "--dataset", folder / "pairs.jsonl", "--out", out]
    options = ["--shard-rows", SHARD_ROWS, "--max-skipped", 0.2]
    # Its place among the children is taken over by wait() below.
    return subprocess.Popen(
        [sys.executable, "-m", "tdpo", *map(str, [*command, *options])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).pid


def wait(pid: int, until: Callable[[], bool] = lambda: False) -> int | None:
    """Wait for a child to end; return its exit status, None where it is still alive when ``until`` holds."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until():
            return None
        time.sleep(0.001)


def passed(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds are over, counted from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def after_a_shard(out: Path, before: int, seconds: float, shards: float) -> Callable[[], bool]:
    """Whether so many seconds are over since the first new shard, or so many new shards are there."""
    end: list[float] = []

    def over() -> bool:
        new = sum(1 for _ in out.glob("pairs-*.parquet")) - before
        if new > 0 and not end:
            end.append(time.monotonic() + seconds)
        return bool(end) and (new >= shards or time.monotonic() >= end[0])

    return over


def ledger(out: Path) -> dict[int, dict[str, Any]]:
    """Index -> entry of the shards that the manifest lists."""
    try:
        document = json.loads((out / "manifest.json").read_text())
    except FileNotFoundError:
        return {}
    return {shard["index"]: shard for shard in document["shards"]}


def measure(folder: Path, out: Path) -> tuple[float, float, float]:
    """Build without a kill: seconds until the first shard is finished, for each further one, and in all."""
    begun = time.monotonic()
    pid = start_forked(folder, out)
    first = None
    while (status := wait(pid, passed(0.005))) is None:
        if first is None and (out / "pairs-00001.parquet").exists():
            first = time.monotonic() - begun
    if status:
        raise SystemExit(f"the build left alone failed with status {status}")
    total = time.monotonic() - begun
    shards = len(ledger(out))
    return first or total, (total - (first or total)) / max(shards - 2, 1), total


def import_seconds() -> float:
    """What a process of its own needs before it begins."""
    begun = time.monotonic()
    modules = "transformers, datasets, tdpo.core.caching.build, tdpo.core.scoring.scorer"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.monotonic() - begun


def place(out: Path, before: dict[int, Any], pid: int) -> str:
    """Say what the killed build was at, from what it left."""
    names = set(os.listdir(out)) if out.is_dir() else set()
    listed = {entry["file"] for entry in ledger(out).values()}
    temporary = sorted(name for name in names if name.endswith(".tmp"))
    lock = (out / ".lock").read_text() if ".lock" in names else ""
    if not lock.startswith(f"{pid} "):  # at most a lock that a builder killed before has left
        return "before it had the lock (imports, data, tokenising), or at the end"
    if temporary:
        return "writing a shard" if temporary[0].startswith("pairs-") else f"writing {temporary[0][:-4]}"
    if any(name.startswith("pairs-") and name not in listed for name in names):
        return "between a shard and its entry"
    if ledger(out).keys() == before.keys():
        return "before its first shard (loading the reference, scoring)"
    return "scoring between shards"


def faults(out: Path, before: dict[int, Any], removed: set[int]) -> Iterator[str]:
    """What a kill must never do. A shard that was removed here may be missing until it is written again."""
    now = ledger(out)
    gone = {i for i, e in now.items() if e["file"] is not None and not (out / e["file"]).exists()}
    removed &= gone | (removed - now.keys())
    yield from (f"the file of finished shard {index} is gone" for index in sorted(gone - removed))
    for index, entry in before.items():
        if now.get(index) != entry and index not in removed:
            yield f"finished shard {index} was lost"
    for index, entry in now.items():
        if entry["file"] is not None and index not in gone:
            data = (out / entry["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                yield f"shard {index} is not what the ledger says"
    if now and not gone:
        rows = sum(entry["rows"] for entry in now.values())
        if len(tdpo.open_cache(out, allow_incomplete=True)) != rows:
            yield f"the cache does not open with its {rows} rows"


def content(out: Path) -> dict[str, Any]:
    """All that a cache says: every column of every row, the ledger, what was skipped, what was scored."""
    tables = [pq.read_table(path) for path in sorted(out.glob("pairs-*.parquet"))]
    manifest = json.loads((out / "manifest.json").read_text())
    keys = ("complete", "identity", "source_rows", "shard_rows", "totals", "shards")
    return {
        "rows": pa.concat_tables(tables).sort_by("row"),
        "names": sorted(path.name for path in out.iterdir()),
        **{key: manifest[key] for key in keys},
    }


def kill(pid: int, until: Callable[[], bool]) -> bool:
    """Kill a build when ``until`` holds; return whether it was alive then.

    Raises:
        SystemExit: the build failed by itself.
    """
    status = wait(pid, until)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a resumed build failed with status {status}")
    return status != 0


def run(folder: Path, kills: int, cli: int, rows: int, seed: int) -> bool:
    """Do all of it; return whether everything held."""
    prepared = os.fork()
    if prepared == 0:
        prepare(folder, rows)
        os._exit(0)
    if wait(prepared):
        raise SystemExit("the reference and data could not be made")
    first, each, total = measure(folder, folder / "alone")
    print(
        f"left alone: {total:.1f} s, the first shards after {first:.1f} s, then {each * 1000:.0f} ms a shard"
    )
    imports = import_seconds()
    rng = random.Random(seed)
    out = folder / "killed"
    whole = -(-rows // SHARD_ROWS)
    places: Counter[str] = Counter()
    finished: list[int] = []
    problems: list[str] = []
    removed: set[int] = set()
    by_cli = set(rng.sample(range(kills), cli))
    while len(finished) < kills:
        before = ledger(out)
        number = len(finished)
        # What is left is shared among the kills still to come.
        share = max(1.0, (whole - len(before)) / (kills - number))
        begin, start = (start_cli, first + imports) if number in by_cli else (start_forked, first)
        pid = begin(folder, out)
        files = sum(1 for _ in out.glob("pairs-*.parquet"))
        late = after_a_shard(out, files, rng.uniform(0, 1.5 * share * each), 2 * share)
        early = passed(rng.uniform(0, start))
        # Started faster than measured, a build that was to be killed early is killed late.
        until = (lambda early=early, late=late: early() or late()) if rng.random() < 0.5 else late
        alive = kill(pid, until)
        problems += faults(out, before, removed)
        if not alive:
            # It came to its end first: drop a shard, as if its disk had lost it, and go on killing.
            places["(came to its end first; a shard was removed)"] += 1
            gone = rng.choice([entry for entry in ledger(out).values() if entry["file"]])
            (out / gone["file"]).unlink()
            removed.add(gone["index"])
            continue
        places[place(out, before, pid)] += 1
        finished.append(len(ledger(out)))
    status = wait(start_forked(folder, out))
    if status:
        raise SystemExit(f"the last build failed with status {status}")
    alone, killed = content(folder / "alone"), content(out)
    problems += [f"{key} differs" for key in alone if alone[key] != killed[key]]
    report = tdpo.verify_cache(out, quiet=True)
    problems += [str(fault) for fault in report.faults]
    print(f"{kills} kills, {cli} of them of the command line; shards finished at each, of {whole}:")
    print(f"  {' '.join(map(str, finished))}")
    for what, count in places.most_common():
        print(f"  {count:>4}  {what}")
    for problem in problems[:20]:
        print(f"  {problem}")
    verdict = "DIFFERS from" if problems else "is the same as"
    print(f"after {kills} kills the cache {verdict} the one left alone: {report.rows:,} rows, {whole} shards")
    return not problems


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--cli", type=int, default=5, help="how many of them go to the command line itself")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tdpo-kill-"))
    try:
        return 0 if run(folder, options.kills, options.cli, options.rows, options.seed) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
