"""Where a task is, and everything below it: what the records say, and what the peers say who are asked."""

import asyncio
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from contracts import headers as names
from contracts import wire
from contracts.control import Cancel, Running, Runs, WhoRuns
from contracts.outcome import Ended, Outcome
from contracts.subjects import Identity, ancestry, in_line
from contracts.task import Task
from mesh.bus import control, topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.ledger import read_ledger
from mesh.bus.records import Stored, read_many, read_range
from mesh.endings import HUMAN
from mesh.errors import ContractError, PermissionDenied
from mesh.lineage import Lineage, Open, Runner, Tree, number_of, open_waits
from mesh.resilience.retry import Ledger

ASK_WITHIN_S = 0.5
NAMED_MAX = 3
"""Of the children that a task waits for, those that are named."""
LIMITS_READ_MAX = 64
RECORDS_MAX = 250_000
"""Of one tree."""
CAPABILITIES_ASKED_MAX = 20
CANCELS_READ_MAX = 1_000
NO_LEDGER: Final = Ledger()


class Where(StrEnum):
    UNKNOWN = "unknown"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    RETRYING = "waiting for a retry"
    PARKED = "parked"
    DONE = "done"
    UNSERVED = "queued, nobody serves it"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where one task is. `since` and `until` are Unix times; what does not apply is None or empty."""

    task: Identity
    where: Where
    detail: str = ""
    peer: str = ""
    attempt: int = 0
    since: float | None = None
    until: float | None = None
    outcome: Outcome | None = None


async def find(bus: Bus, task: Identity) -> Whereabouts:
    """Where a task is now; asks the stream, its consumer and the peers, about half a second at most."""
    subjects = bus.subjects
    records = [subjects.result(task), subjects.wake(task), *subjects.unsettled(task)]
    result, wake, *unsettled = await read_many(bus, records)
    if result is not None:
        return _done(task, result)
    standing = next((stored for stored in unsettled if stored is not None), None)
    if standing is None:
        # Between two reads it may have been answered.
        (result,) = await read_many(bus, [subjects.result(task)])
        return _done(task, result) if result is not None else Whereabouts(task, Where.UNKNOWN, "no such task is kept")
    park = next((stored for stored in unsettled if stored is not None and stored.subject == subjects.park(task)), None)
    subject = subjects.ctl(task.capability, "who-runs")
    answers = await bus.gather(subject, wire.encode(WhoRuns(id=task.id)), within_s=ASK_WITHIN_S, enough=1)
    for runs in wire.readable(Runs, answers):
        for running in runs.running:
            return await _in_hand(bus, task, runs.peer, running)
    found = await _between_attempts(bus, task, standing, park, is_woken=wake is not None)
    if await control.cancelled(bus, ancestry(task, _lineage(standing))) is not None:
        return replace(found, detail="cancelled, and about to be answered so")
    return found


async def trace(bus: Bus, task: Identity) -> Tree | None:
    """The tree of a task and everything below it, or None where nothing of it is kept.

    Reads every record below it and asks every peer once; needs an operator's rights. Of more than 250,000
    records the tree has the oldest.
    """
    lineage = Lineage(bus.subjects)
    for filter_subject in (bus.subjects.any_state(task), bus.subjects.below(task.id)):
        async for stored in read_range(bus, bus.subjects.stream, filter_subject):
            if lineage.records >= RECORDS_MAX:
                break
            lineage.note(stored)
    running: dict[Identity, Runner] = {}
    unserved: set[str] = set()
    cancelled: dict[Identity, Cancel] = {}
    if unsettled := lineage.unsettled:
        async with asyncio.TaskGroup() as asking:
            runners = asking.create_task(_runners(bus))
            cancels = asking.create_task(control.cancels(bus, unsettled[:CANCELS_READ_MAX]))
            asked = sorted(lineage.queued)[:CAPABILITIES_ASKED_MAX]
            served = {name: asking.create_task(is_served(bus, name)) for name in asked}
        running, cancelled = runners.result(), cancels.result()
        unserved = {name for name, answer in served.items() if not answer.result()}
    return lineage.tree(
        task,
        now=time.time(),
        running=running,
        unserved=unserved,
        cancelled=cancelled,
        is_partial=lineage.records >= RECORDS_MAX,
    )


async def capabilities_of(bus: Bus, task_id: str) -> list[str]:
    """The capabilities that have a task of this id."""
    standing = await topology.queued(bus, bus.subjects.any_state(Identity("*", task_id)))
    return sorted({bus.subjects.parse(subject).capability for subject in standing})


async def is_served(bus: Bus, capability: str) -> bool:
    """Whether a live peer answers for a capability. One whose process is frozen counts for none."""
    # Never over the inbox of all requests: whoever is asked learns where the answer goes, and may write there.
    subject = bus.subjects.ctl(capability, "who-runs")
    return bool(await bus.gather(subject, wire.encode(WhoRuns()), within_s=ASK_WITHIN_S, enough=1))


async def _runners(bus: Bus) -> dict[Identity, Runner]:
    answers = await bus.gather(bus.subjects.ctl("all", "who-runs"), wire.encode(WhoRuns()), within_s=ASK_WITHIN_S)
    return {
        Identity(running.capability, running.id): Runner(
            runs.peer, running.since, running.attempt, is_waiting=running.is_waiting
        )
        for runs in wire.readable(Runs, answers)
        for running in runs.running
    }


async def _in_hand(bus: Bus, task: Identity, peer: str, running: Running) -> Whereabouts:
    found = Whereabouts(task, Where.RUNNING, f"on {peer}", peer, attempt=running.attempt, since=running.since)
    if not running.is_waiting:
        return found
    detail, until = await _waits_for(bus, task)
    return replace(found, where=Where.WAITING, detail=detail, until=until)


async def _between_attempts(
    bus: Bus, task: Identity, standing: Stored, park: Stored | None, *, is_woken: bool
) -> Whereabouts:
    ledger = await _ledger(bus, task)
    if ledger.retry_at > time.time():
        failure = ledger.last_failure
        return Whereabouts(
            task,
            Where.RETRYING,
            failure.message if failure else "",
            attempt=ledger.last,
            since=standing.stored_at,
            until=ledger.retry_at,
        )
    if park is None:
        return await _waiting(bus, task, standing)
    return await _parked(bus, task, park, ledger, is_woken=is_woken)


async def _ledger(bus: Bus, task: Identity) -> Ledger:
    """What is on record about the task's attempts; nothing where this user may not read steps, as clients may not."""
    if task.capability in bus.steps_denied:
        return NO_LEDGER
    try:
        return await read_ledger(bus, task, is_redelivered=False)
    except PermissionDenied:
        bus.steps_denied.add(task.capability)
        return NO_LEDGER


async def _parked(bus: Bus, task: Identity, park: Stored, ledger: Ledger, *, is_woken: bool) -> Whereabouts:
    since = max((end.at for _, end in ledger.ended if end.how is Ended.PARKED), default=park.stored_at)
    if is_woken:
        is_late = not await is_served(bus, task.capability)
        detail = f"woken, and no peer serves {task.capability} now" if is_late else "woken, and about to go on"
        return Whereabouts(task, Where.PARKED, detail, attempt=ledger.last, since=since)
    if (found := in_line(task)) is not None and not ledger.last:
        line, position = found
        detail = f"waits for its turn in the line {line.key}, behind {line.at(position - 1)}"
        return Whereabouts(task, Where.PARKED, detail, since=since)
    detail, until = await _waits_for(bus, task)
    return Whereabouts(task, Where.PARKED, detail, attempt=ledger.last, since=since, until=until)


async def _waits_for(bus: Bus, task: Identity) -> tuple[str, float | None]:
    """What a task waits for in words, and when the first of its waits ends by the clock."""
    found = open_waits(bus.subjects, task, await topology.queued(bus, bus.subjects.below(task.id)))
    limits = [*found.sleeps, *(f"~~patience-{name}" for name in found.signals)][-LIMITS_READ_MAX:]
    now = time.time()
    is_read = task.capability not in bus.steps_denied
    fixed = await read_many(bus, [bus.subjects.step(task, name) for name in limits]) if is_read else []
    dues = [number_of(stored) for stored in fixed if stored is not None]
    until = min((due for due in dues if due is not None and due > now), default=None)
    return _words(task, found, is_limited=until is not None), until


def _words(task: Identity, found: Open, *, is_limited: bool) -> str:
    waits = [str(child) for child in found.children[:NAMED_MAX]]
    if (more := len(found.children) - len(waits)) > 0:
        waits.append(f"{more:,} other {'child' if more == 1 else 'children'}")
    if task.capability == HUMAN:
        waits.append("somebody's answer")
    else:
        waits += [f"the signal {name}" for name in found.signals]
    if not waits and is_limited:
        return ""
    waits = waits or ["a signal or a time"]
    return f"waits for {' and '.join([', '.join(waits[:-1]), waits[-1]] if len(waits) > 1 else waits)}"


async def _waiting(bus: Bus, task: Identity, standing: Stored) -> Whereabouts:
    lane = bus.subjects.parse(standing.subject).lane
    info = await topology.inspect(bus, topology.consumer(bus.settings, task.capability, lane))
    if info is None:
        return Whereabouts(task, Where.UNSERVED, f"no peer has ever served {task.capability}", since=standing.stored_at)
    if not await is_served(bus, task.capability):
        return Whereabouts(task, Where.UNSERVED, f"no peer serves {task.capability} now", since=standing.stored_at)
    if (pause := await control.paused(bus, task.capability)) is not None:
        why = f": {pause.reason}" if pause.reason else ""
        return Whereabouts(task, Where.QUEUED, f"{task.capability} is paused{why}", since=standing.stored_at)
    if info["num_pending"] == 0 and info["num_ack_pending"] == 0:
        detail = "its consumer will not hand it out; the next sweep sets it going again"
        return Whereabouts(task, Where.ORPHANED, detail, since=standing.stored_at)
    if standing.sequence <= info["delivered"]["stream_seq"]:
        detail = f"handed out; comes again within {bus.settings.ack_wait_s:g} s if its peer is gone"
        return Whereabouts(task, Where.QUEUED, detail, since=standing.stored_at)
    return Whereabouts(task, Where.QUEUED, f"{info['num_pending']} in its queue", since=standing.stored_at)


def _lineage(standing: Stored) -> tuple[str, ...]:
    try:
        return wire.decode(Task, standing.headers.get(names.TASK, "{}").encode()).lineage
    except ContractError:
        return ()


def _done(task: Identity, stored: Stored) -> Whereabouts:
    outcome = read_outcome(stored)
    return Whereabouts(
        task,
        Where.DONE,
        outcome.failure.message if outcome.failure is not None else "",
        outcome.peer,
        attempt=outcome.attempt,
        since=stored.stored_at,
        outcome=outcome,
    )
