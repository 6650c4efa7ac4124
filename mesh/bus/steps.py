"""Records that a task makes while it runs: steps, signals, last words. Each is written once and read by subject."""

from typing import TypeVar

from contracts import headers as names
from contracts import wire
from contracts.subjects import Identity
from contracts.wire import ContentType, Record
from contracts.workflow import Signal
from mesh.bus.commit import create_once, ttl
from mesh.bus.connection import Bus, Headers
from mesh.bus.leader import read_at_leader
from mesh.bus.parks import wake
from mesh.bus.records import read, read_many
from mesh.errors import SignalRefused
from mesh.telemetry.tracing import carried

R = TypeVar("R", bound=Record)


async def read_step(
    bus: Bus,
    task: Identity,
    name: str,
    kind: type[R],
    *,
    as_type: ContentType = "application/json",
    at_leader: bool = False,
) -> R | None:
    """A record of a task, or None. On a replica that lags it may be missing; `at_leader` makes sure that it is not.

    Raises:
        ContractError: it is malformed or of a newer format.
    """
    subject = bus.subjects.step(task, name)
    stored = await (read_at_leader(bus, task, subject) if at_leader else read(bus, subject))
    return None if stored is None else wire.decode(kind, stored.data, as_type)


async def write_step(
    bus: Bus, task: Identity, name: str, record: R, *, ttl_s: float, as_type: ContentType = "application/json"
) -> R:
    """Make a record unless there is one; the one that stands, whoever wrote it.

    Raises:
        PublishRejected: the server refuses it for good.
    """
    subject = bus.subjects.step(task, name)
    while True:
        if await create_once(bus, subject, wire.encode(record, as_type), {names.TTL: ttl(ttl_s)}):
            return record
        standing = await read(bus, subject)
        if standing is not None:
            return wire.decode(type(record), standing.data, as_type)
        # Refused, yet nothing to read: a replica lags, or it expired in between.


def signal_name(name: str) -> str:
    """The step under which a signal is recorded."""
    return f"~~signal-{name}"


async def read_trace(bus: Bus, task: Identity) -> Headers:
    """What carries the trace of a task that is queued, running or parked; empty where nothing does."""
    subjects = bus.subjects
    standing = await read_many(bus, [subjects.park(task), *subjects.queued(task)])
    kept: Headers = next((stored.headers for stored in standing if stored is not None), {})
    return carried(kept)


async def send_signal(bus: Bus, task: Identity, name: str, signal: Signal, *, ttl_s: float) -> None:
    """Record a signal and wake the task if it is parked. The first signal of a name counts.

    Raises:
        SignalRefused: another came first, the wait was given up, the task is over, or there is no such task.
        BusUnavailable: the server does not answer.
    """
    subjects = bus.subjects
    standing = await read_many(bus, [subjects.result(task), *subjects.unsettled(task)])
    if standing[0] is not None:
        raise SignalRefused(f"{task} is over: a signal changes nothing")
    if not any(standing):
        raise SignalRefused(f"no task {task} is kept: it was never submitted, or its result has expired")
    stands = await write_step(bus, task, signal_name(name), signal, ttl_s=ttl_s)
    await wake(bus, task)
    if stands.nonce == signal.nonce:
        return
    if stands.is_late:
        raise SignalRefused(f"{task} waits for {name!r} no longer: nobody signalled it in time")
    who = f" by {stands.by}" if stands.by else ""
    raise SignalRefused(f"{name!r} of {task} was signalled{who} before")
