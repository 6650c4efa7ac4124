"""Writing a task's outcome, publishing what it sends, and settling its delivery.

The result record is the outbox: it is written once, and everything the task sends next is in it. Whoever
finds the record may relay it again; every publish below is guarded, so it happens once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from contracts import headers as names
from contracts import wire
from contracts.outcome import Failure, Outcome
from contracts.subjects import Identity
from contracts.wire import ContentType
from mesh.bus import objects
from mesh.bus.connection import Bus, Headers
from mesh.bus.pull import Delivery
from mesh.bus.records import Stored, read, read_past
from mesh.bus.submit import guard, task_headers
from mesh.bus.topology import NANOS
from mesh.errors import BusUnavailable, PublishRejected, PublishUnconfirmed, SequenceConflict, StreamFull

log = logging.getLogger("mesh.bus")

FIRST_RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
READ_WITHIN_S: Final = 5.0

CREATE_ONCE: Final[Headers] = {names.EXPECTED_SUBJECT_SEQUENCE: "0"}


async def create_once(
    bus: Bus,
    subject: str,
    data: bytes,
    headers: Headers,
    *,
    within: Headers = CREATE_ONCE,
    held: Callable[[], None] | None = None,
) -> bool:
    """Write a record unless one is there. False: it was there. `held` is called each time it has to wait.

    An unanswered write proves nothing, so it is repeated until the server answers; a full stream is waited
    for. Cancelled midway, the record may or may not be written.

    Raises:
        PublishRejected: the server refuses it for good (too large, no permission).
    """
    wait_s = FIRST_RETRY_S
    headers = {**headers, **within}
    while True:
        try:
            await bus.store(subject, data, headers)
            return True
        except SequenceConflict:
            return False
        except StreamFull as full:
            log.warning("%s waits: %s", subject, full)
        except (BusUnavailable, PublishUnconfirmed):
            if held is not None:
                held()
            await bus.until_connected()
        if held is not None:
            held()
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_S_MAX)


async def commit(
    bus: Bus,
    task: Identity,
    record: bytes,
    *,
    ttl_s: float,
    as_type: ContentType,
    held: Callable[[], None] | None = None,
) -> Stored | None:
    """Write the result record of a task; None when this one is written, else the record that was there first.

    The first write may have been ours, with its answer lost: relay what is found, whoever wrote it.

    Raises:
        PublishRejected: the server refuses it for good.
    """
    subject = bus.subjects.result(task)
    headers = {names.TTL: ttl(ttl_s)}
    if as_type != wire.JSON:
        headers[names.CONTENT_TYPE] = as_type
    while True:
        if await create_once(bus, subject, record, headers, held=held):
            return None
        found = await read_past(bus, (subject,), 1, within_s=READ_WITHIN_S)
        if found is not None:
            return found
        # Refused, yet nothing to read: it expired in between, or the write did not reach the leader.


def read_outcome(stored: Stored) -> Outcome:
    """The outcome in a result record.

    Raises:
        ContractError: the record is malformed or of a newer format.
    """
    return wire.decode(Outcome, stored.data, wire.content_type(stored.headers.get(names.CONTENT_TYPE)))


def stored_type(stored: Stored) -> ContentType:
    """The content type of a stored record.

    Raises:
        ContractError: its header names none that is known.
    """
    return wire.content_type(stored.headers.get(names.CONTENT_TYPE))


async def relay(bus: Bus, outcome: Outcome, *, as_type: ContentType) -> int:
    """Publish what an outcome sends; how many of them were there already. Safe to repeat."""
    repeated = 0
    for send in outcome.sends:
        child = Identity(send.capability, send.id)
        body, headers = bytes(send.payload), task_headers(send.task, as_type, send.trace)
        if send.payload_at is not None:
            body, marked = objects.reference(send.payload_at)
            headers |= marked
        is_new = await create_once(
            bus, bus.subjects.task(child, send.task.priority.lane), body, headers, within=guard(bus, child)
        )
        repeated += not is_new
    return repeated


async def bury(bus: Bus, task: Identity, delivery: Delivery, failure: Failure, *, ttl_s: float) -> bool:
    """Keep a task as it was as a dead letter, with the reason. False: it is kept already."""
    kept = {
        name: value
        for name, value in delivery.headers.items()
        if name in (names.TASK, names.OBJECT, names.CONTENT_TYPE, *names.TRACE)
    }
    headers = {**kept, names.DEAD: wire.encode(failure).decode(), names.TTL: ttl(ttl_s)}
    subject = bus.subjects.dead_letter(task)
    try:
        return await create_once(bus, subject, delivery.payload, headers)
    except PublishRejected as error:
        log.error("%s is kept without its payload of %d bytes: %s", subject, len(delivery.payload), error)
        return await create_once(bus, subject, b"", headers)


async def read_result(bus: Bus, task: Identity) -> Stored | None:
    """The task's result record, or None."""
    return await read(bus, bus.subjects.result(task))


async def ack(bus: Bus, delivery: Delivery) -> None:
    """Done: the message leaves the stream. Lost, it comes again and its record is found."""
    await _settle(bus, delivery, b"+ACK")


async def nak(bus: Bus, delivery: Delivery, *, delay_s: float = 0.0) -> None:
    """Hand the message back, to be delivered again after `delay_s`. Stop its heartbeats first."""
    await _settle(bus, delivery, b'-NAK {"delay": %d}' % int(delay_s * NANOS) if delay_s > 0 else b"-NAK")


async def _settle(bus: Bus, delivery: Delivery, verdict: bytes) -> None:
    try:
        await bus.publish(delivery.reply, verdict)
    except BusUnavailable:
        log.info("%s not settled, it comes again: the connection is gone", delivery.subject)


def ttl(seconds: float) -> str:
    """A per-message time to live; the server knows whole seconds, from 1 (ADR-43)."""
    return f"{max(1, round(seconds))}s"
