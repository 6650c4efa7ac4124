"""Control records: what every peer must know, in a small key-value bucket.

The server echoes each change on a core subject, which outlives reconnections and leader changes; a snapshot
fills in what was missed. A key-value watch would do both, but nats-py's ordered consumer stays silent for
tens of seconds after a broker restart (docs/adr/0002).
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

from contracts import headers as names
from contracts import subjects as grammar
from contracts import wire
from contracts.control import BreakerChange, Cancel, Pause
from contracts.errors import ContractError, NewerFormat
from contracts.limit import Limit, check_limit
from contracts.subjects import Identity
from contracts.wire import Record
from mesh.bus.commit import ttl
from mesh.bus.connection import Bus
from mesh.bus.records import RETRY_S, Stored, read, read_many, read_range
from mesh.errors import Overloaded, StreamFull

_KV_OPERATION = "KV-Operation"


async def cancel(bus: Bus, task: Identity, *, by: str = "", reason: str = "", ttl_s: float) -> None:
    """Record that a task and everything below it is cancelled. Safe to repeat."""
    await _put(bus, grammar.key_cancel(task), Cancel(at=time.time(), by=by, reason=reason), ttl_s=ttl_s)


async def pause(bus: Bus, capability: str, *, by: str = "", reason: str = "") -> None:
    """Record that peers stop taking work of a capability, until `resume`. Safe to repeat."""
    await _put(bus, grammar.key_pause(capability), Pause(at=time.time(), by=by, reason=reason))


async def resume(bus: Bus, capability: str) -> None:
    """Take a pause back. Safe to repeat."""
    await bus.store(bus.subjects.control_record(grammar.key_pause(capability)), b"", {_KV_OPERATION: "DEL"})


async def change_breaker(bus: Bus, name: str, change: BreakerChange, *, after: int | None) -> int:
    """Record a breaker's state, if its last change is the one stored at sequence `after`; None: whatever it is.

    Returns the sequence at which it is stored.

    Raises:
        SequenceConflict: another change was stored meanwhile.
        BusUnavailable, PublishRejected: nothing was stored.
        PublishUnconfirmed: it may be stored.
    """
    guard = {} if after is None else {names.EXPECTED_SUBJECT_SEQUENCE: str(after)}
    return await bus.store(bus.subjects.control_record(grammar.key_breaker(name)), wire.encode(change), guard)


async def breaker(bus: Bus, name: str) -> tuple[int, BreakerChange | None]:
    """The sequence of a breaker's last change, 0 for none, and the change, or None where it cannot be read."""
    subject = bus.subjects.control_record(grammar.key_breaker(name))
    stored = await read(bus, subject, stream=bus.subjects.control_stream)
    if stored is None:
        return 0, None
    try:
        return stored.sequence, wire.decode(BreakerChange, stored.data)
    except ContractError:
        return stored.sequence, None


async def breakers(bus: Bus) -> dict[str, BreakerChange]:
    """The last change of every breaker that ever changed, by name; but for those of a newer format."""
    prefix = bus.subjects.control_record(grammar.key_breaker(""))
    stored = [one async for one in read_range(bus, bus.subjects.control_stream, f"{prefix}>")]
    found: dict[str, BreakerChange] = {}
    for one in sorted(stored, key=lambda one: one.subject):
        if not is_deleted(one.headers):
            with suppress(NewerFormat):
                found[one.subject.removeprefix(prefix)] = wire.decode(BreakerChange, one.data)
    return found


async def paused(bus: Bus, capability: str) -> Pause | None:
    """The pause of a capability that stands now, or None."""
    subject = bus.subjects.control_record(grammar.key_pause(capability))
    stored = await read(bus, subject, stream=bus.subjects.control_stream)
    return None if stored is None or is_deleted(stored.headers) else _read_pause(stored)


async def pauses(bus: Bus) -> dict[str, Pause]:
    """The pauses that stand, by capability."""
    found: dict[str, Pause] = {}
    wanted = bus.subjects.control_record(grammar.key_pause("*"))
    async for stored in read_range(bus, bus.subjects.control_stream, wanted):
        capability = grammar.parse_pause(bus.subjects.control_key(stored.subject))
        if capability is not None and not is_deleted(stored.headers):
            found[capability] = _read_pause(stored)
    return found


async def set_limit(bus: Bus, resource: str, limit: Limit) -> None:
    """Record how much of a resource all peers together may use, in place of what was set before. Safe to repeat.

    Raises:
        ContractError: the resource's name is illegal, or a number of the limit.
    """
    await _put(bus, grammar.key_limit(grammar.check_resource(resource)), check_limit(limit))


async def drop_limit(bus: Bus, resource: str) -> bool:
    """Take what was set for a resource back. False: nothing was. Safe to repeat."""
    key = grammar.key_limit(grammar.check_resource(resource))
    subject = bus.subjects.control_record(key)
    stored = await read(bus, subject, stream=bus.subjects.control_stream)
    if stored is None or is_deleted(stored.headers):
        return False
    await bus.store(subject, b"", {_KV_OPERATION: "DEL"})
    return True


async def limits(bus: Bus) -> dict[str, Limit]:
    """What operators set, by resource."""
    found: dict[str, Limit] = {}
    wanted = bus.subjects.control_record(grammar.key_limit("*"))
    async for stored in read_range(bus, bus.subjects.control_stream, wanted):
        resource = grammar.parse_limit_key(bus.subjects.control_key(stored.subject))
        if resource is not None and not is_deleted(stored.headers):
            found[resource] = wire.decode(Limit, stored.data)
    return found


async def cancelled(bus: Bus, tasks: Iterable[Identity]) -> Cancel | None:
    """The first cancel that stands for one of several tasks, such as a task and its ancestors."""
    return next(iter((await cancels(bus, tasks)).values()), None)


async def cancels(bus: Bus, tasks: Iterable[Identity]) -> dict[Identity, Cancel]:
    """The cancels that stand for several tasks, by task and in their order."""
    tasks = list(tasks)
    subjects = [bus.subjects.control_record(grammar.key_cancel(task)) for task in tasks]
    found = await read_many(bus, subjects, stream=bus.subjects.control_stream)
    return {
        task: _read_cancel(stored)
        for task, stored in zip(tasks, found, strict=True)
        if stored is not None and not is_deleted(stored.headers)
    }


def _read_pause(stored: Stored) -> Pause:
    try:
        return wire.decode(Pause, stored.data)
    except ContractError:
        # A newer format still says that it is paused.
        return Pause(at=stored.stored_at)


def _read_cancel(stored: Stored) -> Cancel:
    try:
        return wire.decode(Cancel, stored.data)
    except ContractError:
        # A newer format still says that the task is cancelled.
        return Cancel(at=stored.stored_at)


def is_deleted(found: dict[str, str]) -> bool:
    """Whether a control message takes its key away."""
    return found.get(_KV_OPERATION) in ("DEL", "PURGE")


async def snapshot(bus: Bus) -> list[Stored]:
    """Every control record as it stands, from a replica that has every key the stream's leader has.

    A cancel that a replica lacks because it lags would else be taken for one that expired.
    """
    stream = bus.subjects.control_stream
    while True:
        info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
        kept = info["state"].get("subjects") or {}
        found = {stored.subject: stored async for stored in read_range(bus, stream, bus.subjects.control_stored)}
        if kept.keys() <= found.keys():
            return [stored for stored in found.values() if not is_deleted(stored.headers)]
        await asyncio.sleep(RETRY_S)


async def _put(bus: Bus, key: str, record: Record, *, ttl_s: float | None = None) -> None:
    headers = {names.TTL: ttl(ttl_s)} if ttl_s is not None else None
    try:
        await bus.store(bus.subjects.control_record(key), wire.encode(record), headers)
    except StreamFull as full:
        raise Overloaded(f"no room for another control record: {full}", retry_after_s=1.0) from None
