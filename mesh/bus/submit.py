"""Guarded submission: one round trip that stores a task, or says that its identity is taken.

The guard is a wildcard over every state the task can be in, in every lane, expected at sequence 0. So while
a task is queued, running, parked or its result is kept, submitting it again starts nothing.
"""

import asyncio
import time
from dataclasses import dataclass

from contracts import headers as names
from contracts import wire
from contracts.outcome import Outcome
from contracts.subjects import Identity
from contracts.task import Task
from contracts.wire import ContentType
from mesh.bus.connection import REPLY_WITHIN_S, Bus, Headers
from mesh.bus.records import Stored, read_past
from mesh.bus.replies import ApiError
from mesh.digest import digest
from mesh.errors import (
    BusUnavailable,
    ContractError,
    IdempotencyConflict,
    Overloaded,
    PublishUnconfirmed,
    SequenceConflict,
    StreamFull,
)
from mesh.resilience.headroom import OVERLOAD_RETRY_S, Credit, Fill

FIRST_RETRY_S = 0.05
RETRY_S_MAX = 0.5
CONFLICT_READ_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """A submission that is stored. `existing` is the record met where the identity was taken already."""

    task: Identity
    sequence: int
    existing: Stored | None = None

    @property
    def is_new(self) -> bool:
        return self.existing is None


def guard(bus: Bus, task: Identity) -> Headers:
    """Headers that let a publish pass only while the task exists in no state."""
    return {
        names.EXPECTED_SUBJECT_SEQUENCE: "0",
        names.EXPECTED_SUBJECT: bus.subjects.any_state(task),
    }


def task_headers(task: Task, as_type: ContentType, traceparent: str = "") -> Headers:
    """Headers that carry a task's envelope."""
    found = {names.TASK: wire.encode(task).decode()}
    if as_type != wire.JSON:
        found[names.CONTENT_TYPE] = as_type
    if traceparent:
        found[names.TRACEPARENT] = traceparent
    return found


class Submitter:
    """Submits tasks over one bus, and stops in time before the stream is full."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._credit: Credit | None = None
        self._sequence = 0
        self._under_way = 0
        self._asking = asyncio.Lock()

    async def submit(
        self,
        identity: Identity,
        payload: bytes,
        task: Task,
        *,
        as_type: ContentType = "application/json",
        traceparent: str = "",
        give_up_at: float,
        is_only: bool = False,
    ) -> Receipt:
        """Store the task in its stream.

        Safe to repeat: while the task or its result is kept, it is stored once. While no server answers it
        is repeated until `give_up_at` (Unix time). Cancelled midway, it may or may not be stored. With `is_only`
        the id must stand for no other capability's task either.

        Raises:
            Overloaded: the stream is too full for new tasks; nothing was stored.
            IdempotencyConflict: the identity stands for another payload.
            PublishRejected: the server refused it; nothing was stored.
            BusUnavailable: no server answered in time; it was not stored.
            PublishUnconfirmed: the last try got no answer; it may be stored.
        """
        headers = {**task_headers(task, as_type, traceparent), **guard(self._bus, identity)}
        if is_only:
            headers[names.EXPECTED_SUBJECT] = self._bus.subjects.any_state(Identity("*", identity.id))
        subject = self._bus.subjects.task(identity, task.priority.lane)
        wait_s = FIRST_RETRY_S
        maybe_stored, reason = False, ""
        while True:
            try:
                return Receipt(identity, await self.store(subject, payload, headers))
            except SequenceConflict as conflict:
                existing = await self.existing(identity, conflict.sequence)
                if existing is not None:
                    check_same(self._bus, identity, existing, payload)
                    return Receipt(identity, existing.sequence, existing)
                if is_only:
                    told = f"{identity.id} stands for another capability than {identity.capability}"
                    raise IdempotencyConflict(told) from None
                # What the guard met is gone, and no result stands in its place: the identity is free again.
            except PublishUnconfirmed as error:
                maybe_stored, reason = True, str(error)
            except BusUnavailable as error:
                reason = str(error)
            remaining_s = give_up_at - time.time()
            if remaining_s <= wait_s:
                if maybe_stored:
                    raise PublishUnconfirmed(
                        f"{identity} may be stored, no answer came in time: {reason}; repeat it as it is"
                    )
                raise BusUnavailable(f"{identity} was not stored, no server took it in time: {reason}")
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def store(self, subject: str, payload: bytes, headers: Headers) -> int:
        """Publish a task once, if the stream has room for it; the sequence at which it is stored.

        Raises:
            Overloaded: the stream is too full for new tasks; nothing was stored.
            SequenceConflict, PublishRejected, BusUnavailable, PublishUnconfirmed: as `Bus.store`.
        """
        await self._admit()
        self._under_way += 1
        try:
            sequence = await self._bus.store(subject, payload, headers)
        except StreamFull as full:
            raise Overloaded(f"the stream takes nothing more: {full}", retry_after_s=OVERLOAD_RETRY_S) from None
        finally:
            self._under_way -= 1
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

    async def _admit(self) -> None:
        credit = self._credit
        if credit is None or credit.is_stale(self._sequence, self._under_way, now=time.monotonic()):
            async with self._asking:
                credit = self._credit
                if credit is None or credit.is_stale(self._sequence, self._under_way, now=time.monotonic()):
                    fill = await self._ask()
                    self._sequence = max(self._sequence, fill.last_sequence)
                    credit = self._credit = Credit.after(fill, full_at=self._bus.settings.full_at)
        if not credit.admits(self._sequence, self._under_way):
            fill = credit.fill
            raise Overloaded(
                f"the stream is {fill.share:.0%} full with {self._under_way} submissions under way, new tasks stop at"
                f" {self._bus.settings.full_at:.0%} ({fill.messages} messages, {fill.bytes} bytes)",
                retry_after_s=OVERLOAD_RETRY_S,
            )

    async def _ask(self) -> Fill:
        stream = self._bus.subjects.stream
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
    known = recorded_digest(bus, existing)
    if known and known != digest(payload):
        raise IdempotencyConflict(
            f"{task} was submitted before with another payload (digest {known}, now {digest(payload)})"
        )


def recorded_digest(bus: Bus, stored: Stored) -> str:
    """The payload digest that a task, park or result record tells; empty for a result that does not say."""
    if stored.subject.startswith(bus.subjects.results_of("").rstrip(".>")):
        try:
            return wire.decode(Outcome, stored.data, wire.content_type(stored.headers.get(names.CONTENT_TYPE))).digest
        except ContractError:
            return ""
    return digest(stored.data)
