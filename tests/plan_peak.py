"""Run by test_plan_peak.py in a process of its own: plan a fit, run it, and say what either found.

python plan_peak.py CACHE MODEL FOLDER CASES, the cases being a JSON list of the fits' options.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import peft  # noqa: F401  (libraries are there before anything is measured)
import torch

import tdpo
import tdpo.core.training.planning.plan
import tdpo.core.training.trainer


def resident(key: str) -> int:
    """Bytes of this process's VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def forget_peak() -> int:
    """Give back what is free, start the peak anew, and return what is held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS:")


def measured(cache: str, model: str, output: Path, options: dict) -> int:
    """Bytes at the peak of a fit, above those held before it."""
    before = forget_peak()
    tdpo.fit("tdpo2", cache, model=model, output=str(output), max_steps=3, quiet=True, **options)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM:")
    return peak - before


cache, model, folder, cases = sys.argv[1:]
# The first fit of a process also loads what libraries load when they are first used.
measured(cache, model, Path(folder) / "warm", {"batch_size": 1})
for number, options in enumerate(json.loads(cases)):
    budget = tdpo.plan_fit("tdpo2", cache, model=model, **options).asked
    peak = measured(cache, model, Path(folder) / str(number), options)
    print(
        json.dumps({"options": options, "rows": budget.rows, "plan": budget.total, "peak": peak}), flush=True
    )
