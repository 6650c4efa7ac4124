"""A game day: tasks at a steady rate, faults as scheduled, and then what the history proves."""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from contracts.subjects import Identity
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.records import read_many
from mesh.fibers import serving
from mesh.testing.chaos.schedule import Planned
from mesh.testing.chaos.workloads import Workload
from mesh.testing.faults import Scene
from mesh.testing.history import Entry, Findings, History, What, check, text
from mesh.testing.recovery import Recovery, middle, recoveries
from mesh.testing.witness import ask, findings

SHOWN = 10
LOOK_EVERY_S = 0.5

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a game day goes. `rate` is in tasks a second, of those that are submitted."""

    for_s: float
    seed: int
    faults: tuple[Planned, ...]
    key_prefix: str
    rate: float = 40.0
    in_flight_max: int = 500
    answered_within_s: float = 60.0
    """How long, after the last submission, answers are waited for; and then, that nothing moves any more."""
    is_shared: bool = False
    """Whether others use the mesh: then only what was asked for is looked at."""


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the timeline; times in seconds, `at_s` from the beginning. See `mesh.testing.recovery`."""

    at_s: float
    fault: str
    target: str
    healed_after_s: float | None
    throughput_s: float | None
    in_flight_s: float | None
    in_flight: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """Recovery times of one kind of fault, in seconds; None where there is none."""

    strikes: int
    throughput_p50_s: float | None
    throughput_max_s: float | None
    in_flight_p50_s: float | None
    in_flight_max_s: float | None
    unrecovered: int
    """Strikes after which a time never came."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a game day. `tasks` were confirmed by the mesh; `lost` and `duplicated` count them."""

    seed: int
    verdict: str
    tasks: int
    answered: int
    lost: int
    duplicated: int
    faults: dict[str, int]
    recovery_s: dict[str, Recovered]
    timeline: tuple[Event, ...]
    violations: dict[str, tuple[str, ...]]
    """The first of each kind: those of `Findings`, and `untold`, whose results stand and whose submitters wait."""
    figures: dict[str, int]

    @property
    def is_sound(self) -> bool:
        return not self.violations


async def play(plan: Plan, scene: Scene, workload: Workload, *, tell: Tell = lambda _: None) -> Report:
    """Ask, strike, wait for what is out, and judge. Cancelled midway, faults under way are ended first."""
    began = time.monotonic()
    async with serving() as fibers:
        out: set[asyncio.Task[None]] = set()
        striking = fibers.create_task(_strike_all(plan, scene, began, tell))
        await _ask_at_rate(plan, scene, workload, began, fibers, out)
        await striking
        tell(f"{len(out)} tasks are still to be answered")
        if out:
            await asyncio.wait(tuple(out), timeout=plan.answered_within_s)
    if plan.is_shared:
        found = await _findings_of_own(plan, scene)
    else:
        found = await findings(scene, within_s=plan.answered_within_s)
    if not workload.is_strict:
        # What cannot be told of agents whose failures nobody planned.
        found = replace(found, undue=(), missing=())
    return judge(plan, scene.history.read(), found, began)


def judge(plan: Plan, entries: Sequence[Entry], found: Findings, began: float) -> Report:
    """The report on a history and what was found in it."""
    recovered = recoveries(entries)
    by_kind: dict[str, list[Recovery]] = defaultdict(list)
    for recovery in recovered:
        by_kind[recovery.strike.fault].append(recovery)
    confirmed = {entry.task for entry in entries if entry.what is What.CONFIRMED}
    answered = {entry.task for entry in entries if entry.what is What.ANSWERED}
    violations = found.violations
    if untold := confirmed - answered - set(found.lost):
        violations["untold"] = tuple(sorted(untold))
    told = [f"{len(of_kind)} {name}" for name, of_kind in violations.items()]
    return Report(
        seed=plan.seed,
        verdict=f"broken: {', '.join(told)}" if told else "every promise held",
        tasks=len(confirmed),
        answered=len(answered),
        lost=len(found.lost),
        duplicated=len(found.repeated),
        faults=dict(sorted(Counter(recovery.strike.fault for recovery in recovered).items())),
        recovery_s={kind: _summed(of_kind) for kind, of_kind in sorted(by_kind.items())},
        timeline=tuple(_event(recovery, began) for recovery in recovered),
        violations={name: of_kind[:SHOWN] for name, of_kind in violations.items()},
        figures=found.figures,
    )


async def _ask_at_rate(
    plan: Plan,
    scene: Scene,
    workload: Workload,
    began: float,
    fibers: asyncio.TaskGroup,
    out: set[asyncio.Task[None]],
) -> None:
    """Submit a task every so often, whatever becomes of those before, but not past the limit in flight."""
    for number in itertools.count():
        due = began + number / plan.rate
        if due > began + plan.for_s:
            return
        if (wait_s := due - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        while len(out) >= plan.in_flight_max:
            if time.monotonic() > began + plan.for_s:
                return
            await asyncio.wait(tuple(out), timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        asking = fibers.create_task(_ask(plan, scene, workload, number))
        out.add(asking)
        asking.add_done_callback(out.discard)


async def _ask(plan: Plan, scene: Scene, workload: Workload, number: int) -> None:
    wanted = workload.wanted(number)
    await ask(
        scene,
        wanted.capability,
        f"{plan.key_prefix}{number}",
        wanted.payload,
        patience_s=wanted.patience_s,
        is_doomed=wanted.is_doomed,
        is_workflow=wanted.is_workflow,
    )


async def _strike_all(plan: Plan, scene: Scene, began: float, tell: Tell) -> None:
    async with asyncio.TaskGroup() as fibers:
        for planned in plan.faults:
            if (wait_s := began + planned.at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            tell(f"{time.monotonic() - began:6.1f} s  {planned.fault.name}")
            # Dice of its own: what it strikes does not depend on when others ended.
            dice = random.Random(f"{plan.seed} strike {planned.number}")  # noqa: S311  # no secret
            fibers.create_task(planned.fault.strike(replace(scene, dice=dice)))


async def _findings_of_own(plan: Plan, scene: Scene) -> Findings:
    """As `findings`, but of the tasks that were asked for alone, and of what their results send."""
    give_up_at = time.monotonic() + plan.answered_within_s
    unread = {_identity(entry.task) for entry in scene.history.read(What.CONFIRMED)}
    while unread:
        unread = await _read_results(scene.client.bus, scene.history, unread)
        if time.monotonic() >= give_up_at:
            break
        if unread:
            await asyncio.sleep(LOOK_EVERY_S)
    return check(scene.history.read())


async def _read_results(bus: Bus, history: History, tasks: set[Identity]) -> set[Identity]:
    """Record the results that stand; the tasks without one, and those that results send."""
    in_order = sorted(tasks, key=str)
    left: set[Identity] = set()
    for task, stored in zip(in_order, await read_many(bus, map(bus.subjects.result, in_order)), strict=True):
        if stored is None:
            left.add(task)
            continue
        outcome = read_outcome(stored)
        sends = [Identity(send.capability, send.id) for send in outcome.sends]
        left.update(sends)
        history.add(
            Entry(
                What.RECORDED,
                task=str(task),
                sequence=stored.sequence,
                status=outcome.status,
                value=text(outcome.value),
                sends=tuple(map(str, sends)),
                attempt=outcome.attempt,
                peer=outcome.peer,
            )
        )
    return left


def _identity(task: str) -> Identity:
    capability, _, task_id = task.partition("/")
    return Identity(capability, task_id)


def _event(recovery: Recovery, began: float) -> Event:
    strike = recovery.strike
    return Event(
        at_s=_rounded(strike.began - began) or 0.0,
        fault=strike.fault,
        target=strike.target,
        healed_after_s=_rounded(None if strike.ended is None else strike.ended - strike.began),
        throughput_s=_rounded(recovery.throughput_s),
        in_flight_s=_rounded(recovery.in_flight_s),
        in_flight=recovery.in_flight,
    )


def _summed(of_kind: Sequence[Recovery]) -> Recovered:
    throughput = [recovery.throughput_s for recovery in of_kind if recovery.throughput_s is not None]
    in_flight = [recovery.in_flight_s for recovery in of_kind if recovery.in_flight_s is not None]
    return Recovered(
        strikes=len(of_kind),
        throughput_p50_s=_rounded(middle(throughput)),
        throughput_max_s=_rounded(max(throughput, default=None)),
        in_flight_p50_s=_rounded(middle(in_flight)),
        in_flight_max_s=_rounded(max(in_flight, default=None)),
        unrecovered=sum(recovery.throughput_s is None or recovery.in_flight_s is None for recovery in of_kind),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
