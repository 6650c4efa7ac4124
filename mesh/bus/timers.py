"""Timers and recurring tasks: scheduled messages, in a stream of their own for each capability (ADR-51).

A schedule header can name any subject of its stream as target, and its flag turns rollups on, so a writer there
could write or wipe what its permissions forbid: nothing but one capability's timers lives in such a stream. A fired
timer carries only a name; a peer turns it into a wake. A fired recurring task carries its payload; a peer turns it
into a task whose id is the schedule's name and the second it fired in, so that it starts once however often it is
delivered.

The server's floor is about 250 ms: a timer that is due sooner fires then.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.subjects import Identity, check_key
from contracts.task import Sender, Task
from contracts.workflow import Recurring
from mesh import payload as payloads
from mesh.bus import topology
from mesh.bus.commit import create_once
from mesh.bus.connection import Bus
from mesh.bus.records import Stored, read, read_range
from mesh.bus.replies import ApiError
from mesh.bus.submit import guard, task_headers
from mesh.digest import digest
from mesh.errors import PublishRejected

TICK_ID_FORMAT = "%Y%m%dT%H%M%SZ"


async def set_timer(bus: Bus, task: Identity, at: float) -> None:
    """Have a task woken at a Unix time. One timer a task and millisecond, so it is safe to repeat."""
    name = f"{round(at * 1000):x}"
    headers = {names.SCHEDULE: f"@at {_rfc3339(at)}", names.SCHEDULE_TARGET: bus.subjects.due(task, name)}
    await create_once(bus, bus.subjects.timer(task, name), b"", headers)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring task that is set."""

    name: str
    recurring: Recurring


async def set_schedule(bus: Bus, name: str, recurring: Recurring) -> bool:
    """Set a recurring task. False: the name is taken; take that one away first.

    A name stands for one schedule of the mesh; of two that are set at once under it for two capabilities, both stand.

    Raises:
        ContractError: the name is illegal, or the server does not understand the schedule or the time zone.
        SetupError: the server cannot hold the capability's timers.
    """
    if await read_schedule(bus, name) is not None:
        return False
    subjects, capability = bus.subjects, recurring.capability
    await topology.ensure(bus, (topology.timers(bus.settings, capability),))
    headers = {names.SCHEDULE: recurring.schedule, names.SCHEDULE_TARGET: subjects.tick(capability, name)}
    if recurring.time_zone:
        headers[names.SCHEDULE_TIME_ZONE] = recurring.time_zone
    try:
        return await create_once(bus, subjects.cron(capability, name), wire.encode(recurring), headers)
    except PublishRejected as error:
        raise ContractError(
            f"schedule {recurring.schedule!r}{f' in {recurring.time_zone}' if recurring.time_zone else ''}: {error};"
            f" six cron fields from seconds on, `@every 10m` (1 s at least), `@hourly`, `@daily`, and an IANA zone"
        ) from error


async def schedules(bus: Bus) -> list[Schedule]:
    """Every recurring task that is set. Needs an operator's rights."""
    subjects = bus.subjects
    return [
        Schedule(subjects.schedule_name(stored.subject), _recurring(stored))
        for stream in await topology.timer_streams(bus)
        async for stored in read_range(bus, stream, subjects.crons)
    ]


async def read_schedule(bus: Bus, name: str) -> Schedule | None:
    """A recurring task by its name, or None."""
    stored = await _read_cron(bus, name)
    return None if stored is None else Schedule(name, _recurring(stored))


async def drop_schedule(bus: Bus, name: str) -> bool:
    """Take a recurring task away; what it started goes on. False: there is none. Needs an operator's rights.

    Raises:
        ApiError: the server refuses, for want of rights.
    """
    stored = await _read_cron(bus, name)
    if stored is None:
        return False
    stream = bus.subjects.timer_stream(_recurring(stored).capability)
    try:
        await bus.api(f"STREAM.PURGE.{stream}", {"filter": stored.subject})
    except ApiError:
        if await read(bus, stored.subject, stream=stream) is not None:
            raise
        return False
    return True


async def _read_cron(bus: Bus, name: str) -> Stored | None:
    check_key(name)
    for stream in await topology.timer_streams(bus):
        capability = stream.removeprefix(bus.subjects.timer_streams)
        stored = await read(bus, bus.subjects.cron(capability, name), stream=stream)
        if stored is not None:
            return stored
    return None


async def submit_tick(bus: Bus, name: str, recurring: Recurring, fired_at: float) -> bool:
    """Submit a recurring task's instance. False: it is there already.

    Raises:
        PublishRejected: the server refuses it for good.
    """
    # Down, not to the nearest: a tick that fired late must not take the next one's id.
    fired = datetime.fromtimestamp(int(fired_at), UTC).strftime(TICK_ID_FORMAT)
    task = Identity(recurring.capability, f"{name}-{fired}")
    encoded = payloads.encode(recurring.payload)
    envelope = Task(digest=digest(encoded), sender=Sender(agent=recurring.by, role="schedule"), reason=f"every {name}")
    headers = task_headers(envelope, "application/json")
    return await create_once(bus, bus.subjects.task(task), encoded, headers, within=guard(bus, task))


def _recurring(stored: Stored) -> Recurring:
    return wire.decode(Recurring, stored.data)


def _rfc3339(at: float) -> str:
    # Never before it is due: the server's clock counts, and a timer that fires early is set again.
    return datetime.fromtimestamp(max(at, time.time()), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
