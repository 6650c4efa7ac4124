"""Guarded submission: one round trip that stores a task, or says that its identity is taken.

A payload over `MESH_INLINE_BYTES_MAX` is stored as an object first; the task then refers to it.

The guard is a wildcard over every state the task can be in, in every lane, expected at sequence 0. So while
a task is queued, running, parked or its result is kept, submitting it again starts nothing.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from contracts import headers as names
from contracts import wire
from contracts.objects import Kept
from contracts.outcome import Outcome
from contracts.subjects import Identity, consumer_name
from contracts.task import Task
from contracts.wire import ContentType
from mesh.bus import objects
from mesh.bus.connection import REPLY_WITHIN_S, Bus, Headers
from mesh.bus.queues import Queues
from mesh.bus.records import Stored, read_many, read_past
from mesh.bus.replies import ApiError
from mesh.digest import digest
from mesh.errors import (
    BusUnavailable,
    ContractError,
    IdempotencyConflict,
    Overloaded,
    PublishRejected,
    PublishUnconfirmed,
    SequenceConflict,
    StreamFull,
)
from mesh.resilience.headroom import OVERLOAD_RETRY_S, Credit, Fill

FIRST_RETRY_S = 0.05
RETRY_S_MAX = 0.5
CONFLICT_READ_WITHIN_S = 2.0
ROOM_KNOWN_FOR_S = 0.5
"""How long what was asked of the stream of objects counts."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A submission that is stored. `existing` is the record met where the identity was taken already."""

    task: Identity
    sequence: int
    existing: Stored | None = None

    @property
    def is_new(self) -> bool:
        return self.existing is None


@dataclass(slots=True)
class Sending:
    """A submission on its way: what is published, the payload it stands for, and what was heard of it."""

    payload: bytes
    body: bytes
    headers: Headers = field(default_factory=dict)
    kept: Kept | None = None
    """Where the payload is, if it does not travel in the body."""
    maybe_stored: bool = False

    def is_unused(self, existing: Stored | None, task: Identity) -> bool:
        """Whether no record refers to the object, of which `existing` was met in its place."""
        if self.kept is None or existing is None:
            return False
        standing = objects.readable_payload(existing.headers, existing.data, task)
        if standing is not None:
            return standing.name != self.kept.name
        return not self.maybe_stored


def guard(bus: Bus, task: Identity) -> Headers:
    """Headers that let a publish pass only while the task exists in no state."""
    return {
        names.EXPECTED_SUBJECT_SEQUENCE: "0",
        names.EXPECTED_SUBJECT: bus.subjects.any_state(task),
    }


def task_headers(task: Task, as_type: ContentType, trace: Mapping[str, str] | None = None) -> Headers:
    """Headers that carry a task's envelope, and the trace it belongs to."""
    found = {names.TASK: wire.encode(task).decode()}
    if as_type != wire.JSON:
        found[names.CONTENT_TYPE] = as_type
    if trace:
        found.update(trace)
    return found


class Submitter:
    """Submits tasks over one bus, and stops in time before the stream is full.

    With `is_bounded` it stops at the bound of a task's queue, too. What a running task asks for is not bounded so: what
    runs must be able to finish.
    """

    def __init__(self, bus: Bus, *, is_bounded: bool = False) -> None:
        self._bus = bus
        self._queues = Queues(bus) if is_bounded else None
        self._credit: Credit | None = None
        self._sequence = 0
        self._under_way = 0
        self._asking = asyncio.Lock()
        self._room: Fill | None = None

    async def submit(
        self,
        identity: Identity,
        payload: bytes,
        task: Task,
        *,
        as_type: ContentType = "application/json",
        trace: Mapping[str, str] | None = None,
        give_up_at: float,
        is_only: bool = False,
    ) -> Receipt:
        """Store the task in its stream.

        Safe to repeat: while the task or its result is kept, it is stored once. While no server answers it
        is repeated until `give_up_at` (Unix time). Cancelled midway, it may or may not be stored. With `is_only`
        the id must stand for no other capability's task either.

        Raises:
            Overloaded: the stream, or the task's queue, is too full for new tasks; nothing was stored.
            IdempotencyConflict: the identity stands for another payload.
            PublishRejected: the server refused it; nothing was stored.
            BusUnavailable: no server answered in time; it was not stored.
            PublishUnconfirmed: the last try got no answer; it may be stored.
        """
        headers = {**task_headers(task, as_type, trace), **guard(self._bus, identity)}
        if is_only:
            headers[names.EXPECTED_SUBJECT] = self._bus.subjects.any_state(Identity("*", identity.id))
        if len(payload) <= objects.inline_max(self._bus):
            sending = Sending(payload, payload, headers)
            return await self._publish(identity, task, sending, give_up_at=give_up_at, is_only=is_only)
        if task.digest and (known := await self._standing(identity)) is not None:
            # Its identity may be known: a look is cheaper than to store all of it for nothing.
            check_same(self._bus, identity, known, payload)
            return Receipt(identity, known.sequence, known)
        kept = await self.keep(identity, payload, as_type=as_type, give_up_at=give_up_at)
        body, marked = objects.reference(kept)
        headers |= {**task_headers(objects.referring(task), as_type, trace), **marked}
        sending = Sending(payload, body, headers, kept)
        try:
            receipt = await self._publish(identity, task, sending, give_up_at=give_up_at, is_only=is_only)
        except (PublishRejected, BusUnavailable):
            if not sending.maybe_stored:
                await objects.remove(self._bus, identity, kept)
            raise
        if sending.is_unused(receipt.existing, identity):
            await objects.remove(self._bus, identity, kept)
        return receipt

    async def keep(self, identity: Identity, payload: bytes, *, as_type: ContentType, give_up_at: float) -> Kept:
        """Store a payload as an object, if the streams have room for it and its task.

        Raises:
            ContractError: it is larger than the stream of objects may ever hold.
            Overloaded: there is no room now; nothing is stored.
            PublishRejected: the server refused it; nothing is stored.
            BusUnavailable: no server took it in time.
        """
        wait_s = FIRST_RETRY_S
        while True:
            try:
                await self._admit()
                await self._admit_object(len(payload))
                break
            except (BusUnavailable, PublishUnconfirmed) as error:
                if give_up_at - time.time() <= wait_s:
                    raise BusUnavailable(f"{identity} was not stored, no server took it in time: {error}") from None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)
        ttl_s = self._bus.settings.payload_ttl_s
        try:
            return await objects.put(
                self._bus, identity, "payload", payload, ttl_s=ttl_s, as_type=as_type, give_up_at=give_up_at
            )
        except StreamFull as full:
            raise Overloaded(
                f"the stream of objects takes nothing more: {full}", retry_after_s=OVERLOAD_RETRY_S
            ) from None

    async def _publish(
        self, identity: Identity, task: Task, sending: Sending, *, give_up_at: float, is_only: bool
    ) -> Receipt:
        lane = task.priority.lane
        subject, queue = self._bus.subjects.task(identity, lane), consumer_name(identity.capability, lane)
        wait_s = FIRST_RETRY_S
        reason = ""
        while True:
            try:
                return Receipt(identity, await self.store(subject, sending.body, sending.headers, queue=queue))
            except SequenceConflict as conflict:
                existing = await self.existing(identity, conflict.sequence)
                if existing is not None:
                    check_same(self._bus, identity, existing, sending.payload)
                    return Receipt(identity, existing.sequence, existing)
                if is_only:
                    told = f"{identity.id} stands for another capability than {identity.capability}"
                    raise IdempotencyConflict(told) from None
                # What the guard met is gone, and no result stands in its place: the identity is free again.
            except PublishUnconfirmed as error:
                sending.maybe_stored, reason = True, str(error)
            except BusUnavailable as error:
                reason = str(error)
            remaining_s = give_up_at - time.time()
            if remaining_s <= wait_s:
                if sending.maybe_stored:
                    raise PublishUnconfirmed(
                        f"{identity} may be stored, no answer came in time: {reason}; repeat it as it is"
                    )
                raise BusUnavailable(f"{identity} was not stored, no server took it in time: {reason}")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def store(self, subject: str, payload: bytes, headers: Headers, *, queue: str) -> int:
        """Publish a task once, if the stream and its queue have room for it; the sequence at which it is stored.

        Raises:
            Overloaded: the stream, or the queue, is too full for new tasks; nothing was stored.
            SequenceConflict, PublishRejected, BusUnavailable, PublishUnconfirmed: as `Bus.store`.
        """
        admitted = None
        if self._queues is not None:
            admitted = self._queues.admitted(queue) or await self._queues.admit(queue)
        sequence = 0
        try:
            await self._admit()
            # With nothing awaited in between, so that those that are admitted at once count each other.
            self._under_way += 1
            try:
                sequence = await self._bus.store(subject, payload, headers)
            except StreamFull as full:
                raise Overloaded(f"the stream takes nothing more: {full}", retry_after_s=OVERLOAD_RETRY_S) from None
            finally:
                self._under_way -= 1
        finally:
            if admitted is not None:
                admitted.settle(is_stored=sequence > 0)
        self._sequence = max(self._sequence, sequence)
        return sequence

    async def existing(self, identity: Identity, sequence: int) -> Stored | None:
        """What stands of a task at a sequence or past it, its result first; None if it is gone meanwhile."""
        subjects = self._bus.subjects
        wakes = (subjects.wake(identity), subjects.wake(identity, is_again=True))
        standing = (subjects.result(identity), *subjects.unsettled(identity), *wakes)
        found = await read_past(self._bus, standing, sequence, within_s=CONFLICT_READ_WITHIN_S)
        if found is not None and found.subject in wakes:
            # What it wakes was stored before it.
            return await read_past(self._bus, standing[: -len(wakes)], 1, within_s=CONFLICT_READ_WITHIN_S)
        return found

    async def _standing(self, identity: Identity) -> Stored | None:
        """What stands of a task, as far as a look tells."""
        subjects = self._bus.subjects
        standing = await read_many(self._bus, (subjects.result(identity), *subjects.unsettled(identity)))
        return next(filter(None, standing), None)

    async def _admit_object(self, size: int) -> None:
        full_at = self._bus.settings.full_at
        async with self._asking:
            room = self._room
            if room is None or time.monotonic() - room.asked_at >= ROOM_KNOWN_FOR_S:
                room = await self._ask(self._bus.subjects.object_stream)
            if not replace(room, bytes=0).has_room(size, full_at=full_at):
                raise ContractError(
                    f"payload of {size} bytes does not fit below {full_at:.0%} of the {room.bytes_max} bytes of the"
                    f" stream of objects (MESH_OBJECTS_BYTES_MAX)"
                )
            if room.has_room(size, full_at=full_at):
                self._room = replace(room, bytes=room.bytes + size)
                return
            self._room = room
        raise Overloaded(
            f"the stream of objects is {room.share:.0%} full, a payload of {size} bytes would take it past"
            f" {full_at:.0%} of {room.bytes_max} bytes",
            retry_after_s=OVERLOAD_RETRY_S,
        )

    async def _admit(self) -> None:
        credit = self._credit
        if credit is not None and self._asking.locked() and credit.admits(self._sequence, self._under_way):
            # While somebody looks, the others go by the last look: they would all wait for one answer.
            return
        if credit is None or credit.is_stale(self._sequence, self._under_way, now=time.monotonic()):
            async with self._asking:
                credit = self._credit
                if credit is None or credit.is_stale(self._sequence, self._under_way, now=time.monotonic()):
                    fill = await self._ask(self._bus.subjects.stream)
                    self._sequence = max(self._sequence, fill.last_sequence)
                    credit = self._credit = Credit.after(fill, full_at=self._bus.settings.full_at)
        if not credit.admits(self._sequence, self._under_way):
            fill = credit.fill
            raise Overloaded(
                f"the stream is {fill.share:.0%} full with {self._under_way} submissions under way, new tasks stop at"
                f" {self._bus.settings.full_at:.0%} ({fill.messages} messages, {fill.bytes} bytes)",
                retry_after_s=OVERLOAD_RETRY_S,
            )

    async def _ask(self, stream: str) -> Fill:
        try:
            info = await self._bus.api(f"STREAM.INFO.{stream}", within_s=REPLY_WITHIN_S)
        except ApiError as error:
            if error.status == 404:
                raise BusUnavailable(f"stream {stream} does not exist; the first peer makes it") from error
            raise BusUnavailable(str(error)) from error
        state, config = info["state"], info["config"]
        return Fill(
            messages=state["messages"],
            bytes=state["bytes"],
            last_sequence=state["last_seq"],
            messages_max=config["max_msgs"],
            bytes_max=config["max_bytes"],
            asked_at=time.monotonic(),
        )


def check_same(bus: Bus, task: Identity, existing: Stored, payload: bytes) -> None:
    """Nothing, if what stands of a task is of the same payload.

    Raises:
        IdempotencyConflict: it is of another.
    """
    known = recorded_digest(bus, existing, task)
    if known and known != digest(payload):
        raise IdempotencyConflict(
            f"{task} was submitted before with another payload (digest {known}, now {digest(payload)})"
        )


def recorded_digest(bus: Bus, stored: Stored, task: Identity) -> str:
    """The payload digest that a task, park or result record tells; empty for a result that does not say."""
    if stored.subject.startswith(bus.subjects.results_of("").rstrip(".>")):
        try:
            return wire.decode(Outcome, stored.data, wire.content_type(stored.headers.get(names.CONTENT_TYPE))).digest
        except ContractError:
            return ""
    return objects.payload_digest(stored.headers, stored.data, task)
