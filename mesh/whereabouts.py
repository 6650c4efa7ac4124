"""Where a task is: what its records say, and what the peers say who are asked."""

import time
from dataclasses import dataclass
from enum import StrEnum

from contracts import wire
from contracts.control import Runs, WhoRuns
from contracts.outcome import Outcome
from contracts.subjects import Identity
from mesh.bus import topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.ledger import read_ledger
from mesh.bus.records import Stored, read_many

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
    for answer in await bus.gather(subject, wire.encode(WhoRuns(id=task.id)), within_s=ASK_WITHIN_S, enough=1):
        runs = wire.decode(Runs, answer)
        for running in runs.running:
            return Whereabouts(
                task, Where.RUNNING, f"on {runs.peer}", runs.peer, attempt=running.attempt, since=running.since
            )
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
    if info["num_pending"] == 0 and info["num_ack_pending"] == 0:
        detail = "its consumer will not hand it out; the next sweep sets it going again"
        return Whereabouts(task, Where.ORPHANED, detail, since=standing.stored_at)
    if standing.sequence <= info["delivered"]["stream_seq"]:
        detail = f"handed out; comes again within {bus.settings.ack_wait_s:g} s if its peer is gone"
        return Whereabouts(task, Where.QUEUED, detail, since=standing.stored_at)
    return Whereabouts(task, Where.QUEUED, f"{info['num_pending']} in its queue", since=standing.stored_at)


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
