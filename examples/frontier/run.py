"""The experiment from the reference to the last policy; started again, it goes on where it was."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Plan
from .pool import Workers
from .store import RESULTS, Results, UnusableError, held


def run(plan: Plan, work: Path, *, workers: int = 2, echo: Callable[[str], None] = print) -> int:
    """Run what is not finished of ``plan`` in ``work``.

    Returns:
        How many policies failed; each is told on stderr, and tried again by the next call.

    Raises:
        UnusableError: the folder holds another plan, or another run is at work there.
    """
    from .cells import run_cell

    with held(work), Workers(workers) as pool:
        results = Results(work / RESULTS, plan)
        stages = Stages(plan, work, results, pool, echo)
        stages.prepare()
        rate = learning_rate(results)
        cells = [cell for cell in plan.cells if cell.key not in results.finished]
        echo(f"{len(plan.cells) - len(cells)} of {len(plan.cells)} policies are finished; {len(cells)} to go")
        return stages.run(run_cell, [(plan, work, cell, rate) for cell in cells])


def learning_rate(results: Results) -> float:
    """The rule: of the pilots, the rate whose DPO has the smallest loss on held-out pairs."""
    return float(min(results.of("pilot"), key=lambda row: row["heldout_loss"])["learning_rate"])


@dataclass(frozen=True)
class Stages:
    """The steps of a run, each over all processes, and where their results go."""

    plan: Plan
    work: Path
    results: Results
    pool: Workers
    echo: Callable[[str], None]

    def prepare(self) -> None:
        """Reference, pilots, then data and caches of the seeds."""
        from .cells import run_pilot, run_seed
        from .prepare import prepare_reference, prepare_seed

        plan, work = self.plan, self.work
        tried = {row["learning_rate"] for row in self.results.of("pilot")}
        if pilots := [(plan, work, rate) for rate in plan.learning_rates if rate not in tried]:
            self.must("the reference", prepare_reference, [(plan, work)])
            self.must("the pilot's data", prepare_seed, [(plan, work, plan.pilot_seed)])
            self.must("the pilots", run_pilot, pilots)
        rate = learning_rate(self.results)
        self.echo(f"learning rate {rate:g}, by the pilots")
        ready = {row["seed"] for row in self.results.of("reference")}
        seeds = [(plan, work, seed, rate) for seed in plan.seeds if seed not in ready]
        self.must("the seeds' data", run_seed, seeds)

    def must(self, what: str, function: Callable[..., Any], tasks: list[Any]) -> None:
        """Run what everything after it needs."""
        if tasks:
            self.echo(f"preparing {what}")
        if self.run(function, tasks):
            raise UnusableError(f"{what} could not be made; see above")

    def run(self, function: Callable[..., Any], tasks: list[Any]) -> int:
        """Run ``tasks`` and keep their figures; how many failed, each told on stderr."""
        failures, finished, start = 0, 0, time.monotonic()
        for row, error in self.pool.each(function, tasks):
            if error is not None:
                failures += 1
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                continue
            finished += 1
            if row is None:
                continue
            self.results.add(row)
            left = (time.monotonic() - start) / finished * (len(tasks) - finished - failures) / 60
            self.echo(
                f"{finished:4}/{len(tasks)}  {row['series']:20} beta {row['beta']:<5g} seed {row['seed']:<4} "
                f"reward {row['reward']:+.3f}  KL {row['kl']:6.3f}  {left:.0f} min left"
            )
        return failures
