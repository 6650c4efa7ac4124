"""How long tasks take under bids and under six other ways to hand them out, side by side on one real server.

    python -m ops.bench.schedule [--quick] [--json] [--seeds N] [--seconds S] [--fleets a,b] [--loads 0.5,0.75]
                                 [--policies bids,shared] [--within-s 1700] [--plot docs/schedule.svg]

Eight peer processes, one submitter, open loop: tasks come as a Poisson process, each with the work drawn for it
beforehand, and every policy of a seed gets the same trace. A task's time counts from when it was due to be
submitted to when its result is known to the submitter. Policies of a cell run at the same time, and some fleets
beside each other, each with queues of its own, so that they meet the same machine. Where that was busy with other
things they run again in the end, if there is time. Peers wait instead of working, so that four cores carry them all.

Ratios are paired by seed: their geometric mean, and its 95 % interval. The *central queue* is a simulation of the same
trace: one line, nothing lost between tasks.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.local.server import local_server
from ops.bench.scheduling import grid, plot, report
from ops.bench.scheduling.central_queue import servers_of, simulate
from ops.bench.scheduling.figures import half_share_after_s, percentile
from ops.bench.scheduling.fleets import FLEETS, PEERS, Trace, draw_trace
from ops.bench.scheduling.grid import AT_ONCE, Batch, Cell
from ops.bench.scheduling.peers import Family, run_precisely
from ops.bench.scheduling.policies import POLICIES
from ops.bench.scheduling.report import CENTRAL, Figures, Report
from ops.bench.scheduling.runs import Run, Submitter, measured, peer_processes

SECONDS = 9.0
QUICK_SECONDS = 10.5
WITHIN_S = 1700.0
QUICK_WITHIN_S = 82.0
WARM_UP_LOAD = 0.5
WARM_UP_S = 1.5
DRAIN_S = 1.0
# Runs of one trace are shifted against each other, or each arrival would find all of them at work.
STAGGER_S = 0.05
BUSY_FROM_S = 0.01
"""With one submission in a hundred this late the machine was busy with other things: the batch is run once more."""


class Bench:
    """The batches of one call, one after the other, as long as there is time."""

    def __init__(self, batches: Sequence[Batch], *, seconds: float, give_up_at: float) -> None:
        self.report = Report()
        self.done: list[Batch] = []
        self.busy: set[Batch] = set()
        self.timers_late_s: list[float] = []
        self.submits_late_s: list[float] = []
        self._batches = batches
        self._seconds = seconds
        self._give_up_at = give_up_at
        names = dict.fromkeys((c.fleet.name, policy) for b in batches for c in b.cells for policy in c.policies)
        self._families = {name: Family(FLEETS[name[0]], POLICIES[name[1]]) for name in names}

    async def run(self, url: str) -> None:
        families = list(self._families.values())
        with peer_processes(url, families):
            async with Submitter.connect(url) as submitter:
                await submitter.until_up(families)
                _tell("peers are up")
                for start in range(0, len(families), AT_ONCE):
                    await self._warm_up(submitter, families[start : start + AT_ONCE])
                todo = deque(self._batches)
                while todo:
                    batch = todo.popleft()
                    if time.monotonic() + batch.lasts_s(self._seconds) + DRAIN_S > self._give_up_at:
                        continue
                    _tell(f"{len(self.done) + 1}/{len(self._batches)} {batch}")
                    late_s = await self._run_batch(submitter, batch)
                    is_again = batch in self.done
                    self.busy.discard(batch)
                    if late_s > BUSY_FROM_S:
                        self.busy.add(batch)
                        todo.extend(() if is_again else (batch,))
                    if not is_again:
                        self.done.append(batch)

    async def _warm_up(self, submitter: Submitter, families: Sequence[Family]) -> None:
        """Peers get to know how long tasks take, and everything has been called once."""
        async with asyncio.TaskGroup() as runs:
            for family in families:
                trace = draw_trace(family.fleet, WARM_UP_LOAD, seed=0, seconds=WARM_UP_S)
                runs.create_task(submitter.run(family, trace, name=f"{family.name} warm-up"))

    async def _run_batch(self, submitter: Submitter, batch: Batch) -> float:
        """How late one submission in a hundred was, in seconds."""
        found: dict[tuple[Cell, str], Run] = {}

        async def one(cell: Cell, policy: str, trace: Trace, *, after_s: float) -> None:
            family = self._families[cell.fleet.name, policy]
            await submitter.until_left(family)
            await asyncio.sleep(after_s)
            found[cell, policy] = await submitter.run(family, trace, name=f"{family.name} {cell.load} {batch.seed}")

        stagger_s = (turn * STAGGER_S for turn in itertools.count())
        traces = {cell: self._trace(cell, batch.seed) for cell in batch.cells}
        async with asyncio.TaskGroup() as runs:
            for cell, trace in traces.items():
                for policy in cell.policies:
                    runs.create_task(one(cell, policy, trace, after_s=next(stagger_s)))
        # Only now: figuring keeps the submitter from submitting.
        for cell, trace in traces.items():
            central = Figures(measured(trace, simulate(trace, servers_of(cell.fleet))))
            self.report.add(cell.fleet.name, cell.load, CENTRAL, batch.seed, central)
        for (cell, policy), run in found.items():
            figures = Figures(measured(run.trace, run.sojourns_s()), run.unfinished, _recovered_s(cell, run))
            self.report.add(cell.fleet.name, cell.load, policy, batch.seed, figures)
            self.timers_late_s += run.timers_late_s
            self.submits_late_s += run.submits_late_s
        return percentile([late_s for run in found.values() for late_s in run.submits_late_s], 0.99)

    def _trace(self, cell: Cell, seed: int) -> Trace:
        return draw_trace(cell.fleet, cell.load, seed, seconds=grid.run_seconds(cell.fleet, self._seconds))


def _recovered_s(cell: Cell, run: Run) -> float | None:
    fleet = cell.fleet
    if not fleet.recovers:
        return None
    return half_share_after_s(
        run.ends_by_peer(),
        fleet.slow_peers[0],
        peers=PEERS,
        since_s=fleet.slow_until_s,
        until_s=run.trace.arrivals_s[-1],
    )


def main() -> None:
    began = time.monotonic()
    options = _options()
    if options.quick:
        batches = grid.quick(options.seeds)
    else:
        batches = grid.full(fleets=options.fleets, loads=options.loads, policies=options.policies, seeds=options.seeds)
    within_s = options.within_s or (QUICK_WITHIN_S if options.quick else WITHIN_S)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    bench = Bench(batches, seconds=seconds, give_up_at=began + within_s)
    load_before = os.getloadavg()
    with local_server() as server:
        run_precisely(bench.run(server.url))
    if options.plot is not None:
        options.plot.write_text(plot.drawn(bench.report))
    about = {
        "seconds": round(time.monotonic() - began, 1),
        "seconds_per_run": seconds,
        "load_average": [round(load_before[0], 2), round(os.getloadavg()[0], 2)],
        "timers_late_ms": _p50_p99_ms(bench.timers_late_s),
        "submits_late_ms": _p50_p99_ms(bench.submits_late_s),
        "busy": [str(batch) for batch in bench.done if batch in bench.busy],
        "runs": [str(batch) for batch in bench.done],
        "cut_short": [str(batch) for batch in batches if batch not in bench.done],
    }
    if options.json:
        print(json.dumps({**report.as_json(bench.report), **about}))
    else:
        _print(bench, about, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sample within 90 s")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--seeds", type=int, help="traces per cell; named, no cell has fewer")
    parser.add_argument("--seconds", type=float, help="length of a run; some fleets need more")
    parser.add_argument("--fleets", type=_names(FLEETS), default=list(FLEETS))
    parser.add_argument("--loads", type=lambda text: [float(load) for load in text.split(",")])
    parser.add_argument("--policies", type=_names(POLICIES), default=list(POLICIES))
    parser.add_argument("--within-s", type=float, help="begin no run that would end later")
    parser.add_argument("--plot", type=Path, help="write a plot as SVG")
    return parser.parse_args()


def _names(known: dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return found

    return names


def _print(bench: Bench, about: dict[str, Any], options: argparse.Namespace) -> None:
    print("what the one who hands a task over knows:")
    for policy in POLICIES.values():
        print(f"  {policy.name:14}{policy.knows}")
    for line in report.told(bench.report):
        print(line)
    print("\ntargets:")
    for target in report.targets(bench.report):
        print(f"  {target}")
    print("\nnot run, of the whole grid:")
    for line in grid.left_out(bench.done, fleets=options.fleets, policies=options.policies):
        print(f"  {line}")
    if about["cut_short"]:
        print(f"  for want of time: {len(about['cut_short'])} batches")
    print(f"\n{len(bench.done)} batches of {about['seconds_per_run']:g} s and more in {about['seconds']:g} s")
    print(f"load average {about['load_average']}; late by (p50, p99): timers {about['timers_late_ms']} ms,", end=" ")
    print(f"submissions {about['submits_late_ms']} ms")
    if bench.busy:
        print(f"in {len(bench.busy)} batches the machine was busy with other things: run it again")


def _p50_p99_ms(late_s: Sequence[float]) -> list[float]:
    return [round(1e3 * percentile(late_s, share), 2) for share in (0.5, 0.99)]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
