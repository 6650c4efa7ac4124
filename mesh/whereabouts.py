"""Where a task is: what its records say, and what the peers say who are asked."""

import asyncio
import time
from dataclasses import dataclass, replace
from enum import StrEnum

from contracts import headers as names
from contracts import wire
from contracts.control import Runs, WhoRuns
from contracts.outcome import Outcome
from contracts.subjects import Identity, ancestry
from contracts.task import Task
from mesh.bus import control, topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.ledger import read_ledger
from mesh.bus.records import Stored, read_many
from mesh.errors import BusUnavailable, ContractError, PublishUnconfirmed

ASK_WITHIN_S = 0.5


class Where(StrEnum):
    UNKNOWN = "unknown"
    QUEUED = "queued"
    RUNNING = "running"
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
    result, *unsettled = await read_many(bus, [subjects.result(task), *subjects.unsettled(task)])
    if result is not None:
        return _done(task, result)
    standing = next((stored for stored in unsettled if stored is not None), None)
    if standing is None:
        # Between two reads it may have been answered.
        (result,) = await read_many(bus, [subjects.result(task)])
        return _done(task, result) if result is not None else Whereabouts(task, Where.UNKNOWN, "no such task is kept")
    if standing.subject == subjects.park(task):
        return Whereabouts(task, Where.PARKED, since=standing.stored_at)
    subject = subjects.ctl(task.capability, "who-runs")
    answers = await bus.gather(subject, wire.encode(WhoRuns(id=task.id)), within_s=ASK_WITHIN_S, enough=1)
    for runs in wire.readable(Runs, answers):
        for running in runs.running:
            return Whereabouts(
                task, Where.RUNNING, f"on {runs.peer}", runs.peer, attempt=running.attempt, since=running.since
            )
    found = await _between_attempts(bus, task, standing)
    if await control.cancelled(bus, ancestry(task, _lineage(standing))) is not None:
        return replace(found, detail="cancelled, and about to be answered so")
    return found


async def _between_attempts(bus: Bus, task: Identity, standing: Stored) -> Whereabouts:
    ledger = await read_ledger(bus, task, is_redelivered=False)
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
    return await _waiting(bus, task, standing)


async def _waiting(bus: Bus, task: Identity, standing: Stored) -> Whereabouts:
    lane = bus.subjects.parse(standing.subject).lane
    info = await topology.inspect(bus, topology.consumer(bus.settings, task.capability, lane))
    if info is None:
        return Whereabouts(task, Where.UNSERVED, f"no peer has ever served {task.capability}", since=standing.stored_at)
    if not await _has_peer(bus, task.capability):
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


async def _has_peer(bus: Bus, capability: str) -> bool:
    """Whether a live peer answers for a capability. One whose process is frozen counts for none."""
    question = wire.encode(WhoRuns())
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            await bus.request(bus.subjects.ctl(capability, "who-runs"), question)
    except (BusUnavailable, PublishUnconfirmed, TimeoutError):
        return False
    return True


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
