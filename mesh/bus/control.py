"""Control records: what every peer must know, in a small key-value bucket.

The server echoes each change on a core subject, which outlives reconnections and leader changes; a snapshot
fills in what was missed. A key-value watch would do both, but nats-py's ordered consumer stays silent for
tens of seconds after a broker restart (docs/adr/0002).
"""

import asyncio
import time
from collections.abc import Iterable

from contracts import headers as names
from contracts import subjects as grammar
from contracts import wire
from contracts.control import Cancel, Pause
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


async def paused(bus: Bus, capability: str) -> Pause | None:
    """The pause of a capability that stands now, or None."""
    subject = bus.subjects.control_record(grammar.key_pause(capability))
    stored = await read(bus, subject, stream=bus.subjects.control_stream)
    return None if stored is None or is_deleted(stored.headers) else wire.decode(Pause, stored.data)


async def cancelled(bus: Bus, tasks: Iterable[Identity]) -> Cancel | None:
    """The first cancel that stands for one of several tasks, such as a task and its ancestors."""
    return next(iter((await cancels(bus, tasks)).values()), None)


async def cancels(bus: Bus, tasks: Iterable[Identity]) -> dict[Identity, Cancel]:
    """The cancels that stand for several tasks, by task and in their order."""
    tasks = list(tasks)
    subjects = [bus.subjects.control_record(grammar.key_cancel(task)) for task in tasks]
    found = await read_many(bus, subjects, stream=bus.subjects.control_stream)
    return {
        task: wire.decode(Cancel, stored.data)
        for task, stored in zip(tasks, found, strict=True)
        if stored is not None and not is_deleted(stored.headers)
    }


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
