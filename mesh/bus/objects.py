"""Objects: payloads and values too large for a message, kept in chunks beside the stream of tasks and records.

Rules.
- An object is stored before what refers to it, under a name that nobody used before. So nobody but its writer, and
  those who read the reference, can touch it, and a removal never hits what another writer stored meanwhile.
- It is referred to by one record and by copies of that record: the park and the dead letter of a task. A record that
  may outlive the others has the object's time extended (`keep_for`), one about another task has a copy of it.
- It goes with what refers to it: a value and a step by the same time to live, a payload when its task is over. To
  remove it each chunk is overwritten with an empty message that expires after a second. That needs no right but to
  write there; JetStream's own object store purges, which no permission can scope to a capability.
- What was stored and never referred to, because its writer died in between, goes by its time to live.
- Who reads finds the chunks by the reference alone and checks the digest. A chunk that is missing may be one that a
  lagging replica does not have yet: the stream's leader is asked before it counts as gone.
"""

import asyncio
import hashlib
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
from nats.aio.msg import Msg

from contracts import headers as names
from contracts import wire
from contracts.objects import Kept, KeptPayload
from contracts.subjects import Identity, in_line
from contracts.wire import ContentType, Record
from mesh.bus.connection import Bus, Headers
from mesh.bus.records import RETRY_S, Stored, read, read_many
from mesh.digest import DIGEST_LENGTH, digest
from mesh.errors import (
    BusUnavailable,
    ContractError,
    ObjectGone,
    PublishRejected,
    PublishUnconfirmed,
    SequenceConflict,
    StreamFull,
)

log = logging.getLogger("mesh.bus")

CHUNK_BYTES: Final = 256 * 1024
ENVELOPE_BYTES: Final = 8 * 1024
"""Room that a message needs beside its payload or value."""
AT_ONCE: Final = 4
"""Chunks of one object that are on their way at the same time; a process has a few such objects (`Bus.windows`)."""
SLACK_S: Final = 5.0
"""How much longer an object is kept than the record that is written right after it."""
UNTOLD_MAX: Final = 6
"""How often a missing chunk is looked for again where nobody may ask the leader whether it is gone."""
HASHED_ASIDE_BYTES: Final = 1024 * 1024
FIRST_RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 2.0

R = TypeVar("R", bound=Record)

_NEVER: Final = str(2**62)
_GONE: Final[Headers] = {names.TTL: "1s"}


def inline_max(bus: Bus) -> int:
    """The most bytes of a payload or value that travel in the message itself."""
    return min(bus.settings.inline_bytes_max, bus.nc.max_payload - ENVELOPE_BYTES)


def cut(size: int, chunk_bytes: int) -> list[slice]:
    """The slices of an object's chunks."""
    return [slice(start, min(start + chunk_bytes, size)) for start in range(0, size, chunk_bytes)]


def short_digest(kept: Kept) -> str:
    """The digest of an object's bytes, as it would be of a payload that stands in a message."""
    return kept.digest[:DIGEST_LENGTH]


# Payloads.


def kept_payload(headers: Headers, body: bytes, task: Identity) -> Kept | None:
    """Where a task's payload is kept; None where the body is the payload.

    Raises:
        ContractError: the body is no reference, or refers to what is not the task's.
    """
    if headers.get(names.OBJECT) is None:
        return None
    kept = wire.decode(KeptPayload, body).kept
    line = in_line(task)
    if kept.line and (line is None or kept.line != line[0].key):
        raise ContractError(f"the payload is kept under {kept.line[:80]!r}, which is not the line of {task}")
    return kept


def readable_payload(headers: Headers, body: bytes, task: Identity) -> Kept | None:
    """Where a task's payload is kept, as far as that can be read."""
    try:
        return kept_payload(headers, body, task)
    except ContractError:
        return None


def payload_digest(headers: Headers, body: bytes, task: Identity) -> str:
    """The digest of the payload that a task's message carries or refers to."""
    kept = readable_payload(headers, body, task)
    return digest(body) if kept is None else kept.digest[:DIGEST_LENGTH]


def reference(kept: Kept) -> tuple[bytes, Headers]:
    """Body and headers of a message whose payload is kept as an object; its envelope goes through `referring`."""
    return wire.encode(KeptPayload(kept=kept, v=wire.FORMAT)), {names.OBJECT: "1"}


def referring(record: R) -> R:
    """A record that refers to an object, of the format that says so: who cannot follow it leaves it to others."""
    return msgspec.structs.replace(record, v=wire.FORMAT)


def payload_place(task: Identity, kept: Kept) -> Identity:
    """Under which identity a task's payload is kept: its own, or its line's key where it had no id yet."""
    return Identity(task.capability, kept.line) if kept.line else task


# Storing.


async def put(
    bus: Bus,
    task: Identity,
    what: str,
    content: bytes,
    *,
    ttl_s: float,
    as_type: ContentType = "application/json",
    give_up_at: float | None = None,
    held: Callable[[], None] | None = None,
) -> Kept:
    """Store bytes as an object of a task; `what` begins its name. It is kept for `ttl_s` and a little longer.

    Each chunk is repeated until the server takes it. With `give_up_at` (Unix time) that ends then, and a full
    stream is not waited for; without it `held` is called whenever it has to wait, and one that meets a full stream
    starts over. Cancelled or refused midway, what was stored is removed.

    Raises:
        StreamFull: the stream has no room; only with `give_up_at`.
        BusUnavailable: no server took it in time; only with `give_up_at`.
        PublishRejected: the server refuses it for good.
    """
    slices = cut(len(content), min(CHUNK_BYTES, bus.nc.max_payload - ENVELOPE_BYTES))
    kept = Kept(
        name=f"{what}-{secrets.token_hex(8)}",
        bytes=len(content),
        chunks=len(slices),
        digest=await _hashed(content),
        content_type=as_type,
    )
    headers = {names.TTL: _ttl(ttl_s)}
    stop_at = None if give_up_at is None else time.monotonic() + give_up_at - time.time()
    wait_s = FIRST_RETRY_S
    while True:
        try:
            for window in _windows(kept.chunks):
                chunks = [(bus.subjects.chunk(task, kept.name, number), content[slices[number]]) for number in window]
                for subject, data in await _store_window(bus, chunks, headers):
                    # Outside of the window, which others may use while this one waits.
                    await _store(bus, subject, data, headers, stop_at=stop_at, held=held)
            return kept
        except StreamFull as full:
            # Half of it would keep others from room that they need to end, and so from making any.
            await _forget(bus, task, kept)
            if stop_at is not None:
                raise
            log.warning("object %s of %s waits: %s", kept.name, task, full)
        except BaseException:
            await _forget(bus, task, kept)
            raise
        if held is not None:
            held()
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311  # those that wait take turns
        wait_s = min(2 * wait_s, RETRY_S_MAX)


async def keep_for(bus: Bus, task: Identity, kept: Kept, *, ttl_s: float) -> None:
    """Have an object kept for `ttl_s` from now. Waits for ever where nobody answers.

    What of it is gone stays gone, and what the server refuses to keep for longer goes by its time to live.
    """
    for number in range(kept.chunks):
        subject = bus.subjects.chunk(task, kept.name, number)
        stored = await read(bus, subject, stream=bus.subjects.object_stream)
        if stored is not None and stored.data:
            guarded = {names.TTL: _ttl(ttl_s), names.EXPECTED_SUBJECT_SEQUENCE: str(stored.sequence)}
            try:
                await _store(bus, subject, stored.data, guarded)
            except SequenceConflict:
                # Somebody else extends it, or removes it.
                return
            except PublishRejected as error:
                log.warning("object %s of %s is kept no longer than it is: %s", kept.name, task, error)
                return


async def copy(bus: Bus, kept: Kept, source: Identity, target: Identity, what: str, *, ttl_s: float) -> Kept:
    """The same bytes as an object of another task, passed on chunk by chunk. Waits for ever where nobody answers.

    Raises:
        ObjectGone: it is not kept any more.
        StreamFull: the stream has no room.
        PublishRejected: the server refuses it for good.
    """
    copied = msgspec.structs.replace(kept, name=f"{what}-{secrets.token_hex(8)}", line="")
    headers = {names.TTL: _ttl(ttl_s)}
    try:
        for number in range(kept.chunks):
            chunk = await _chunk(bus, source, kept, number)
            await _store(bus, bus.subjects.chunk(target, copied.name, number), chunk, headers)
    except BaseException:
        await _forget(bus, target, copied)
        raise
    return copied


async def remove(bus: Bus, task: Identity, kept: Kept) -> None:
    """Have an object go. Safe to repeat; what the server does not confirm goes by its time to live."""
    try:
        for window in _windows(kept.chunks):
            chunks = [(bus.subjects.chunk(task, kept.name, number), b"") for number in window]
            for subject, _ in await _store_window(bus, chunks, _GONE):
                await bus.store(subject, b"", _GONE)
    except (BusUnavailable, PublishRejected, PublishUnconfirmed) as error:
        log.info("object %s of %s is left to its time to live: %s", kept.name, task, error)


# Reading.


async def get(bus: Bus, task: Identity, kept: Kept) -> bytes:
    """The bytes of an object of a task.

    While no server answers it waits, for ever; give it a deadline.

    Raises:
        ObjectGone: it is not kept any more, or is not what was stored.
        ContractError: it is larger than `MESH_PAYLOAD_BYTES_MAX` here.
    """
    limit = bus.settings.payload_bytes_max
    if kept.bytes > limit:
        raise ContractError(f"{_named(task, kept)} exceeds {limit} bytes (MESH_PAYLOAD_BYTES_MAX)")
    stream, found = bus.subjects.object_stream, list[bytes]()
    for window in _windows(kept.chunks):
        async with bus.windows:
            page = await read_many(
                bus, [bus.subjects.chunk(task, kept.name, number) for number in window], stream=stream
            )
        for number, stored in zip(window, page, strict=True):
            found.append(await _chunk(bus, task, kept, number, stored))
    content = b"".join(found)
    if len(content) != kept.bytes or await _hashed(content) != kept.digest:
        raise ObjectGone(f"{_named(task, kept)} is damaged: what is kept has another digest")
    return content


async def _chunk(bus: Bus, task: Identity, kept: Kept, number: int, stored: Stored | None = None) -> bytes:
    subject, untold = bus.subjects.chunk(task, kept.name, number), 0
    while True:
        if stored is None:
            stored = await read(bus, subject, stream=bus.subjects.object_stream)
        if stored is not None:
            if stored.data:
                return stored.data
            # An empty one stands in the place of what is removed.
            break
        try:
            if not await _stands(bus, subject):
                break
        except (PublishUnconfirmed, PublishRejected):
            untold += 1
            if untold >= UNTOLD_MAX:
                break
        except BusUnavailable:
            await bus.until_connected()
        await asyncio.sleep(RETRY_S)
    raise ObjectGone(f"{_named(task, kept)} is not kept any more: it has expired, or was removed")


async def _stands(bus: Bus, subject: str) -> bool:
    """Whether a chunk stands, as the stream's leader has it."""
    try:
        # A write that cannot pass: its refusal tells.
        await bus.store(subject, b"", {names.EXPECTED_SUBJECT_SEQUENCE: _NEVER})
    except SequenceConflict as refusal:
        return refusal.sequence > 0
    return True


# How chunks travel.


def _windows(chunks: int) -> Iterator[range]:
    for start in range(0, chunks, AT_ONCE):
        yield range(start, min(start + AT_ONCE, chunks))


async def _store_window(bus: Bus, chunks: list[tuple[str, bytes]], headers: Headers) -> list[tuple[str, bytes]]:
    """Publish a few chunks at once; those of them that are not known to be stored, which may be repeated."""
    left: list[tuple[str, bytes]] = []
    async with bus.windows:
        sent: list[Awaitable[Msg] | None] = []
        for subject, data in chunks:
            try:
                sent.append(await bus.post(subject, data, headers))
            except BusUnavailable:
                sent.append(None)
        for chunk, answer in zip(chunks, sent, strict=True):
            try:
                if answer is None:
                    left.append(chunk)
                else:
                    bus.stored_at(chunk[0], await answer)
            except (BusUnavailable, PublishUnconfirmed, PublishRejected):
                left.append(chunk)
    return left


async def _store(
    bus: Bus,
    subject: str,
    data: bytes,
    headers: Headers,
    *,
    stop_at: float | None = None,
    held: Callable[[], None] | None = None,
) -> None:
    wait_s = FIRST_RETRY_S
    while True:
        try:
            await bus.store(subject, data, headers)
            return
        except (BusUnavailable, PublishUnconfirmed) as error:
            if stop_at is not None and time.monotonic() + wait_s >= stop_at:
                raise BusUnavailable(f"no server took {subject} in time: {error}") from None
            if held is not None:
                held()
            if stop_at is None:
                await bus.until_connected()
        if held is not None:
            held()
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_S_MAX)


async def _forget(bus: Bus, task: Identity, kept: Kept) -> None:
    """Remove without waiting for an answer, what was stored in part."""
    with suppress(BusUnavailable, PublishRejected):
        for number in range(kept.chunks):
            await bus.publish(bus.subjects.chunk(task, kept.name, number), b"", headers=_GONE)


async def _hashed(content: bytes) -> str:
    if len(content) < HASHED_ASIDE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()


def _ttl(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds + SLACK_S))}s"


def _named(task: Identity, kept: Kept) -> str:
    what = kept.name.partition("-")[0]
    return f"the {what} of {task}, an object of {kept.bytes} bytes with digest {kept.digest[:DIGEST_LENGTH]},"
