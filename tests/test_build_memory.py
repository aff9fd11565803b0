"""Memory does not grow with the data: twenty times the rows, the same peak."""

import os
import subprocess
import sys

import pytest
from support import write_pairs

SCRIPT = """
import resource, sys, tdpo
from tdpo.cache.order import epoch_order
ref, data, out = sys.argv[1:]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

reader = tdpo.build_cache(ref, data, out, shard_rows=128, quiet=True)
print(peak())
order = epoch_order(reader.group_sizes, 0, 0)
for start in range(0, len(order), 64):
    reader.read(order[start : start + 64])
print(peak())
"""
SLACK_MB = 30
"""For the allocator."""


@pytest.mark.slow
def test_building_and_reading_peak_alike_at_1_000_and_20_000_rows(tmp_path, reference):
    peaks = []
    for rows in (1_000, 20_000):
        data = write_pairs(tmp_path / f"{rows}.jsonl", rows)
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, reference, data, tmp_path / f"c{rows}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        peaks.append([int(line) / 1024 for line in result.stdout.split()])
    (build, read), (long_build, long_read) = peaks
    assert long_build - build < SLACK_MB, peaks
    assert long_read - read < SLACK_MB, peaks
