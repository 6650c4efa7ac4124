"""The long run: thousands of tasks under every fault at once, then the checker.

    python -m tests.faults.storm --tasks 10000 --seed 7 --json
    python -m tests.faults.storm --tasks 5000 --seed 7 --cluster

Ends with 0 if every promise held. The same seed gives the same plan of faults; when each strikes is measured
in answered tasks, not in seconds, but the machine's own timing is not repeated.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mesh.bus.connection import REPLY_WITHIN_S
from mesh.testing.faults import (
    CancelTask,
    DrainPeer,
    Fault,
    FreezeBroker,
    FreezeLeader,
    FreezePeer,
    KillAll,
    KillBroker,
    KillLeader,
    KillPeer,
    RestartBroker,
    Scene,
    StepDown,
    SubmitAgain,
)
from mesh.testing.history import Findings
from mesh.testing.kill_points import Point
from tests.faults.scene import ACK_WAIT_S, ask, findings, scene, seed
from tests.faults.workload import Job

QUICK: tuple[tuple[Fault, int], ...] = (
    (KillPeer(), 8),
    (FreezePeer(for_s=1.5 * ACK_WAIT_S), 5),
    (DrainPeer(), 3),
    (KillBroker(), 2),
    (KillBroker(for_s=1.0), 1),
    (RestartBroker(), 1),
    (SubmitAgain(), 10),
    (CancelTask(), 10),
)
EVERYTHING = (*QUICK, (FreezeBroker(for_s=1.5 * REPLY_WITHIN_S), 1))
ELECTED_WITHIN_S = 9.0
"""How long a node must stand still for another one to be elected, at most."""
ON_A_CLUSTER: tuple[tuple[Fault, int], ...] = (
    *EVERYTHING,
    (KillLeader(), 2),
    (KillLeader(for_s=3.0), 2),
    (StepDown(), 2),
    (FreezeLeader(for_s=ELECTED_WITHIN_S), 1),
    (KillAll(), 1),
)
POINTS = {
    Point.UNCOMMITTED: 0.001,
    Point.COMMITTED: 0.002,
    Point.HALF_RELAYED: 0.001,
    Point.RELAYED: 0.002,
    Point.ACK_LOST: 0.005,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How big a storm is. A fault strikes about every `strike_every` answered tasks."""

    tasks: int
    seed: int
    peers: int = 4
    in_flight: int = 300
    strike_every: int = 50
    poison: int = 3
    refused: int = 10
    faults: tuple[tuple[Fault, int], ...] = EVERYTHING
    points: dict[Point, float] = field(default_factory=lambda: dict(POINTS))
    cluster: bool = False


async def storm(plan: Plan, folder: Path, *, within_s: float, is_told: bool = False) -> Findings:
    """What a storm's history proves. Past `within_s` seconds it is ended and judged as it stands."""
    async with scene(folder, peers=plan.peers, seed=plan.seed, points=plan.points, cluster=plan.cluster) as here:
        weather = Weather(plan, here, is_told=is_told)
        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as fibers:
                fibers.create_task(weather.blow())
                await weather.ask_everything()
                weather.calm()
        except TimeoutError:
            return await findings(here, within_s=0.0)
        return await findings(here)


class Weather:
    """Asks for the tasks, and lets faults strike as they are answered."""

    def __init__(self, plan: Plan, here: Scene, *, is_told: bool) -> None:
        self._plan = plan
        self._scene = here
        self._is_told = is_told
        self._answered = 0
        self._is_calm = False
        self._moved = asyncio.Event()
        self._dice = random.Random(f"{plan.seed} tasks")

    async def ask_everything(self) -> None:
        """Every task of the plan, some doomed, `in_flight` at once, until each is answered."""
        numbers = iter(range(self._plan.tasks))
        specials = [("poison", f"poison-{n}") for n in range(self._plan.poison)]
        specials += [("refuse", f"refuse-{n}") for n in range(self._plan.refused)]
        async with asyncio.TaskGroup() as fibers:
            for capability, key in specials:
                payload = Job() if capability == "refuse" else None
                fibers.create_task(self._ask(capability, key, payload, is_doomed=True))
            for _ in range(self._plan.in_flight):
                fibers.create_task(self._ask_in_turn(numbers))

    async def blow(self) -> None:
        """Faults until it is calm and those under way are over."""
        faults, weights = zip(*self._plan.faults, strict=True)
        dice = self._scene.dice
        async with asyncio.TaskGroup() as fibers:
            due = 0
            while True:
                due += 1 + dice.randrange(2 * self._plan.strike_every)
                while self._answered < due:
                    if self._is_calm:
                        return
                    self._moved.clear()
                    await self._moved.wait()
                (fault,) = dice.choices(faults, weights)
                fibers.create_task(fault.strike(self._scene))

    def calm(self) -> None:
        """No more faults."""
        self._is_calm = True
        self._moved.set()

    async def _ask_in_turn(self, numbers: "itertools.Iterator[int]") -> None:
        for number in numbers:
            dice = self._dice
            job = Job(
                run_s=dice.choice((0.0, 0.005, 0.02, 0.1)),
                sends=dice.choice((0, 0, 1, 3)),
                failing=dice.choice((0.0, 0.0, 0.2)),
            )
            # Some submitters are too impatient to hear that they were heard.
            patience_s = dice.choice((None, None, None, 0.002))
            await self._ask("work", f"t{number}", job, patience_s=patience_s)

    async def _ask(
        self,
        capability: str,
        key: str,
        payload: Job | None,
        *,
        patience_s: float | None = None,
        is_doomed: bool = False,
    ) -> None:
        await ask(self._scene, capability, key, payload, patience_s=patience_s, is_doomed=is_doomed)
        self._answered += 1
        self._moved.set()
        if self._is_told and self._answered % 500 == 0:
            sys.stderr.write(f"{self._answered} answered\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--strike-every", type=int, default=50, help="answered tasks between two faults, about")
    parser.add_argument("--cluster", action="store_true", help="three nodes, three replicas, and faults of their own")
    parser.add_argument("--in-flight", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--within-s", type=float, default=1_800.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the history and the logs")
    wanted = parser.parse_args()
    plan = Plan(
        tasks=wanted.tasks,
        seed=seed() if wanted.seed is None else wanted.seed,
        peers=wanted.peers,
        in_flight=wanted.in_flight,
        faults=ON_A_CLUSTER if wanted.cluster else EVERYTHING,
        cluster=wanted.cluster,
        strike_every=wanted.strike_every,
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mesh-storm-") as scratch:
        folder = wanted.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(storm(plan, folder, within_s=wanted.within_s, is_told=True))
    told = {"seed": plan.seed, "elapsed_s": round(time.monotonic() - began, 1), **asdict(found)}
    sys.stdout.write((json.dumps(told) if wanted.json else f"{json.dumps(found.figures, indent=1)}\n{found}") + "\n")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
