"""Reading records back by subject, through the stream's direct gets (ADR-31)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec
from nats.aio.msg import Msg

from contracts import headers as names
from mesh.bus.connection import Bus, Headers
from mesh.errors import BusUnavailable, PublishUnconfirmed

RETRY_S = 0.1
LAST = 2**63
"""Past every sequence."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as the stream keeps it."""

    subject: str
    sequence: int
    stored_at: float
    data: bytes
    headers: Headers


async def read(bus: Bus, subject: str, *, stream: str = "") -> Stored | None:
    """The message on a subject, or None. On a replica that lags it may be missing or old.

    Waits for ever where nobody answers; give it a deadline.
    """
    endpoint = f"$JS.API.DIRECT.GET.{stream or bus.subjects.stream}.{subject}"
    while True:
        try:
            return _found(await bus.request(endpoint))
        except (BusUnavailable, PublishUnconfirmed):
            await bus.until_connected()
            await asyncio.sleep(RETRY_S)


async def read_many(bus: Bus, subjects: Iterable[str], *, stream: str = "") -> list[Stored | None]:
    """The messages on several subjects, asked for at once and in their order."""
    stream = stream or bus.subjects.stream
    pending: list[tuple[str, Awaitable[Msg] | None]] = []
    for subject in subjects:
        try:
            pending.append((subject, await bus.post(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"")))
        except BusUnavailable:
            pending.append((subject, None))
    found: list[Stored | None] = []
    for subject, answer in pending:
        try:
            message = await answer if answer is not None else None
        except PublishUnconfirmed:
            message = None
        if message is None or _status(message) == "503":
            found.append(await read(bus, subject, stream=stream))
        else:
            found.append(_found(message))
    return found


async def read_range(
    bus: Bus, stream: str, filter_subject: str, *, batch: int = 500, first: int = 1, last: int = LAST
) -> AsyncIterator[Stored]:
    """Every message of a stream that a subject filter matches, in order of storage, `batch` a request.

    Those before the stream sequence `first` and after `last` are left out; a stream that is written to all the time has
    no end otherwise.

    Raises:
        BusUnavailable: nobody serves the stream.
        PermissionDenied: this user may not read it as a whole.
    """
    endpoint, sequence = f"$JS.API.DIRECT.GET.{stream}", first
    while True:
        page: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = bus.new_inbox()
        subscription = await bus.nc.subscribe(inbox, cb=page.put)
        try:
            wanted = {"seq": sequence, "next_by_subj": filter_subject, "batch": batch}
            await bus.publish(endpoint, msgspec.json.encode(wanted), inbox)
            count = 0
            while True:
                try:
                    async with asyncio.timeout(5.0):
                        message = await page.get()
                except TimeoutError:
                    bus.check_denied(endpoint)
                    break
                if _status(message):
                    if _status(message) == "503":
                        raise BusUnavailable(f"stream {stream} does not answer")
                    if _status(message) == "404" or not count:
                        return
                    break
                stored = _stored(message)
                if stored.sequence > last:
                    return
                count += 1
                sequence = stored.sequence + 1
                yield stored
        finally:
            await subscription.unsubscribe()


async def read_past(bus: Bus, subjects: Iterable[str], sequence: int, *, within_s: float) -> Stored | None:
    """The first message on one of the subjects whose sequence is at least `sequence`.

    A refused write names the sequence that beat it; a read from a lagging replica may not show it yet.
    None after `within_s` seconds: whatever stood there has gone on to another state.
    """
    subjects = tuple(subjects)
    give_up_at = time.monotonic() + within_s
    while True:
        for stored in await read_many(bus, subjects):
            if stored is not None and stored.sequence >= sequence:
                return stored
        if time.monotonic() >= give_up_at:
            return None
        await asyncio.sleep(RETRY_S)


def _status(message: Msg) -> str | None:
    return message.headers.get(names.STATUS) if message.headers else None


def _found(message: Msg) -> Stored | None:
    return None if _status(message) is not None else _stored(message)


def _stored(message: Msg) -> Stored:
    found = message.headers or {}
    return Stored(
        subject=found.get(names.SUBJECT, ""),
        sequence=int(found.get(names.SEQUENCE, 0)),
        stored_at=unix(found.get(names.STORED_AT, "")),
        data=message.data,
        headers=found,
    )


def unix(timestamp: str) -> float:
    """A server's timestamp as Unix time; 0 where there is none."""
    # The server writes nanoseconds, of which `fromisoformat` takes six digits.
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    if not whole:
        return 0.0
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
