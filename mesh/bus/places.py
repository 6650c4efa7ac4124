"""Taking a place in a line: the submitter's side of an order key.

A task in a line is submitted at the position after the last one that is known to be given. Rules:

- The publish is guarded as any submission is, so one submitter wins each position, and the order of positions is the
  order in which the stream accepted the tasks. Refused: that position is given, and the next one is tried.
- A position is tried only when the one before it is known to be given: this process saw it taken, it stands in some
  state, or the line's mark says so. Positions therefore have no gaps.
- What is known is relied on for `KNOWN_FOR_S`, a tenth of the shortest time that a result in a line is kept: what was
  given meanwhile still stands. Past that the mark is read, which covers every position whose result may have expired.
- Without a mark nothing of the line has ended, or all of it is forgotten. The first position is then tried with a guard
  over the whole line, so that it is taken only where nothing of the line stands.
- A submission under an idempotency key first puts on record at which position. Whoever repeats it tries that position
  too, until it is taken; the record moves on only when another task took it.
- A submission whose answer was lost finds itself by what the envelope, and later the result, tells of it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.line import LinePlace
from contracts.outcome import Outcome
from contracts.subjects import Identity, Kind, Line, consumer_name, in_line
from contracts.task import Order, Task
from contracts.wire import ContentType
from mesh.bus import objects, topology
from mesh.bus.commit import stored_type, ttl
from mesh.bus.connection import Bus, Headers
from mesh.bus.leader import standing
from mesh.bus.lines import RESULT_S_MIN, mark_ttl_s, read_mark
from mesh.bus.records import Stored, read
from mesh.bus.submit import FIRST_RETRY_S, RETRY_S_MAX, Receipt, Sending, Submitter, check_same, guard, task_headers
from mesh.errors import BusUnavailable, PublishRejected, PublishUnconfirmed, SequenceConflict

KNOWN_FOR_S: Final = RESULT_S_MIN / 10
LINES_MAX: Final = 10_000
"""Of which a submitter remembers the end."""
STEPS_MAX: Final = 2
"""Positions that are tried one after the other before the end of the line is searched for."""


@dataclass(slots=True)
class End:
    """What this process knows of a line: positions up to `given` are given, as it learnt at a time of `monotonic`."""

    given: int = 0
    learnt_at: float = -KNOWN_FOR_S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def learn(self, given: int) -> int:
        self.given, self.learnt_at = given, time.monotonic()
        return given


@dataclass(frozen=True, slots=True)
class Wanted:
    """A submission into a line. `key` is empty where it has no idempotency key."""

    line: Line
    key: str
    name: str
    """Tells it from every other submission into the line."""
    payload: bytes
    task: Task
    as_type: ContentType
    body: bytes
    """The payload, or the reference to it."""
    headers: Headers


@dataclass(slots=True)
class Try:
    """How far a submission has come: the position it is for, and what was heard of the last publish there."""

    position: int = 0
    place: int = 0
    """The sequence of the place on record."""
    is_open: bool = False
    """It may be stored at the position."""
    was_open: bool = False
    """It may have been stored, there or before."""
    steps: int = 0


class Places:
    """Submits tasks into lines over one bus."""

    def __init__(self, bus: Bus, submitter: Submitter) -> None:
        self._bus = bus
        self._submitter = submitter
        self._ends: OrderedDict[Line, End] = OrderedDict()

    async def submit(
        self,
        line: Line,
        payload: bytes,
        task: Task,
        *,
        key: str,
        name: str,
        as_type: ContentType = "application/json",
        trace: Mapping[str, str] | None = None,
        give_up_at: float,
    ) -> Receipt:
        """Store a task at the end of its line.

        Safe to repeat under the same `key`. Without one, `name` is to be unlike any other submission's. While no
        server answers it is repeated until `give_up_at` (Unix time). Cancelled midway, it may or may not be stored.

        Raises:
            Overloaded: the stream, or the task's queue, is too full for new tasks; nothing was stored.
            IdempotencyConflict: the key stands for another payload.
            PublishRejected: the server refused it; nothing was stored.
            BusUnavailable: no server answered in time; it was not stored.
            PublishUnconfirmed: the last try got no answer; it may be stored.
        """
        if len(payload) <= objects.inline_max(self._bus):
            wanted = Wanted(line, key, name, payload, task, as_type, payload, dict(trace or {}))
            return await self._submit(wanted, Try(), give_up_at=give_up_at)
        # Its id is not known before it has a position.
        place = Identity(line.capability, line.key)
        kept = await self._submitter.keep(place, payload, as_type=as_type, give_up_at=give_up_at)
        kept = msgspec.structs.replace(kept, line=line.key)
        body, marked = objects.reference(kept)
        wanted = Wanted(line, key, name, payload, objects.referring(task), as_type, body, {**marked, **(trace or {})})
        state = Try()
        try:
            receipt = await self._submit(wanted, state, give_up_at=give_up_at)
        except (PublishRejected, BusUnavailable):
            if not state.was_open:
                await objects.remove(self._bus, place, kept)
            raise
        sending = Sending(payload, body, kept=kept, maybe_stored=state.was_open)
        if sending.is_unused(receipt.existing, receipt.task):
            await objects.remove(self._bus, place, kept)
        return receipt

    async def _submit(self, wanted: Wanted, state: Try, *, give_up_at: float) -> Receipt:
        line, reason = wanted.line, "no answer"
        wait_s = FIRST_RETRY_S
        try:
            async with asyncio.timeout(give_up_at - time.time()) as limit, self._end(line).lock:
                while True:
                    try:
                        return await self._take(wanted, state)
                    except BusUnavailable as error:
                        reason = str(error)
                    except PublishUnconfirmed as error:
                        state.was_open, reason = True, str(error)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, RETRY_S_MAX)
        except TimeoutError:
            if not limit.expired():
                raise
            where = f"a task for {line.capability} in the line {line.key}"
            if state.is_open:
                raise PublishUnconfirmed(f"{where} may be stored, no answer came in time: {reason}") from None
            raise BusUnavailable(f"{where} was not stored, no server took it in time: {reason}") from None

    async def _take(self, wanted: Wanted, state: Try) -> Receipt:
        line, end = wanted.line, self._end(wanted.line)
        while True:
            given = await self._given(line, end, state.position)
            last = given or 0
            if state.position != last + 1:
                if 0 < state.position <= last and (found := await self._found(wanted, state)):
                    return found
                if not await self._move(wanted, state, last + 1):
                    continue
            if (receipt := await self._publish(wanted, state, is_first=given is None)) is not None:
                end.learn(state.position)
                return receipt
            state.steps += 1
            if given is None:
                await self._listed(line, end)
                continue
            end.learn(state.position)
            if state.steps > STEPS_MAX:
                await self._searched(line, end)

    async def _publish(self, wanted: Wanted, state: Try, *, is_first: bool) -> Receipt | None:
        """Publish at a position. None: it is taken."""
        identity = wanted.line.at(state.position)
        order = Order(key=wanted.line.key, position=state.position, submitted_as=wanted.name)
        task = msgspec.structs.replace(wanted.task, order=order)
        headers = {**task_headers(task, wanted.as_type), **wanted.headers, **guard(self._bus, identity)}
        if is_first:
            headers[names.EXPECTED_SUBJECT] = self._bus.subjects.any_position(wanted.line)
        lane = task.priority.lane
        subject, queue = self._bus.subjects.task(identity, lane), consumer_name(identity.capability, lane)
        was_open, state.is_open = state.is_open, True
        try:
            return Receipt(identity, await self._submitter.store(subject, wanted.body, headers, queue=queue))
        except SequenceConflict:
            state.is_open = was_open
            return None
        except BusUnavailable:
            state.is_open = was_open
            raise

    async def _found(self, wanted: Wanted, state: Try) -> Receipt | None:
        """The receipt of a submission that may stand at its position already; None where another does."""
        if not (wanted.key or state.is_open):
            return None
        identity = wanted.line.at(state.position)
        while sequence := await standing(self._bus, identity, self._bus.subjects.any_state(identity)):
            stored = await self._submitter.existing(identity, sequence)
            if stored is None:
                continue
            if _submitted_as(self._bus, stored) != wanted.name:
                return None
            check_same(self._bus, identity, stored, wanted.payload)
            return Receipt(identity, stored.sequence, stored if wanted.key else None)
        return None

    # The end of a line.

    def _end(self, line: Line) -> End:
        end = self._ends.setdefault(line, End())
        self._ends.move_to_end(line)
        if len(self._ends) > LINES_MAX:
            self._ends.popitem(last=False)
        return end

    async def _given(self, line: Line, end: End, position: int) -> int | None:
        """The last position that is known to be given, 0 for none; None where nothing is known of the line.

        It is looked for further where somebody was about to take a `position` past what is known.
        """
        if time.monotonic() - end.learnt_at < KNOWN_FOR_S:
            given = end.given
        elif (mark := await read_mark(self._bus, line)).used:
            given = end.learn(max(mark.used, end.given))
        elif position <= 1:
            return None
        else:
            given = await self._listed(line, end)
        return await self._searched(line, end) if position > given + 1 else given

    async def _listed(self, line: Line, end: End) -> int:
        """The last position of those that stand."""
        subjects = self._bus.subjects
        addresses = map(subjects.parse, await topology.queued(self._bus, subjects.any_position(line)))
        found = [in_line(address.identity) for address in addresses if address.kind is not Kind.STEP]
        return end.learn(max((position for each in found if each is not None for position in each[1:]), default=0))

    async def _searched(self, line: Line, end: End) -> int:
        """The last position that is given; all past what is known stand, up to that one."""

        async def stands(position: int) -> bool:
            task = line.at(position)
            return await standing(self._bus, task, self._bus.subjects.any_state(task)) > 0

        known, step = end.given, 1
        while await stands(known + step):
            known, step = known + step, 2 * step
        while step > 1:
            step //= 2
            if await stands(known + step):
                known += step
        return end.learn(known)

    # Idempotency keys.

    async def _read_place(self, wanted: Wanted, state: Try) -> None:
        subjects = self._bus.subjects
        stored = await read(self._bus, subjects.place(wanted.line, wanted.key), stream=subjects.line_stream)
        if stored is not None:
            state.position, state.place = wire.decode(LinePlace, stored.data).position, stored.sequence

    async def _move(self, wanted: Wanted, state: Try, position: int) -> bool:
        """Be for another position, on record if there is a key. False: somebody else moved the key; look again."""
        if wanted.key:
            headers = {
                names.EXPECTED_SUBJECT_SEQUENCE: str(state.place),
                names.TTL: ttl(mark_ttl_s(self._bus.settings, 0.0)),
            }
            record = wire.encode(LinePlace(position=position))
            try:
                state.place = await self._bus.store(self._bus.subjects.place(wanted.line, wanted.key), record, headers)
            except SequenceConflict:
                await self._read_place(wanted, state)
                return False
        state.position, state.is_open = position, False
        return True


def _submitted_as(bus: Bus, stored: Stored) -> str:
    try:
        if bus.subjects.parse(stored.subject).kind is Kind.RESULT:
            return wire.decode(Outcome, stored.data, stored_type(stored)).submitted_as
        order = wire.decode(Task, stored.headers.get(names.TASK, "{}").encode()).order
    except ContractError:
        return ""
    return "" if order is None else order.submitted_as
