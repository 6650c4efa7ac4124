"""The verbs on the mesh: children over their records, steps over theirs, waits over the flow.

Nothing is read before it is asked for, and nothing at all on a task's first run: its guarded submission says that
no record of it can exist. On a replay a verb looks for its own record by subject, pipelined where many are asked for
at once (agents hold no rights to read a stream at large). A replica may lag: that a step is not on record is asked of
the stream's leader before it runs again; a child that is missed is submitted again, which its guard refuses.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec

from contracts.errors import ContractError
from contracts.event import EventKind
from contracts.outcome import Send
from contracts.subjects import Identity
from contracts.workflow import Signal, Step
from mesh.bus.commit import read_outcome, stored_type
from mesh.bus.connection import Bus
from mesh.bus.echoes import Echoes
from mesh.bus.leader import read_at_leader
from mesh.bus.outsized import Taken, whole_outcome, whole_step
from mesh.bus.records import Stored, read, read_many
from mesh.bus.steps import read_step, signal_name, write_step
from mesh.bus.submit import Submitter
from mesh.context import Context
from mesh.digest import digest
from mesh.endings import HUMAN
from mesh.errors import (
    BusUnavailable,
    IdempotencyConflict,
    NobodyAnswered,
    NonDeterminism,
    Overloaded,
    PublishUnconfirmed,
)
from mesh.fibers import serving
from mesh.limits import WITHIN_S, Grant
from mesh.settings import Settings
from mesh.telemetry.cells import Count
from mesh.telemetry.tracing import DUPLICATE, NO_SPAN, Span, found_on_record
from mesh.verbs import Answered, Asked
from mesh.workflow.flow import Flow
from mesh.workflow.inbox import Inbox
from mesh.workflow.limits import Limiter
from mesh.workflow.parking import Wait

SUBMIT_WITHIN_S = 30.0
LOOK_EVERY_S = 0.5
STANDS_STILL_S = 0.25
"""A run that only undoes has come as far as it can when none of its branches found a record for so long."""
_BOOKKEEPING = ("~~version-", "~~sleep-", "~~patience-")
"""Steps that only fix something: no span is spent on them."""
SAGA = "~~saga"
"""The step that says that a task has something to undo."""


class Unwinding(BaseException):
    """Ends a run that only goes as far as the records do, to undo what they tell.

    It is no `Exception`, so that a handler's own clean-up takes it for no failure of a step.
    """


@dataclass(slots=True)
class Services:
    """What the verbs of one peer share."""

    bus: Bus
    settings: Settings
    peer: str
    limiter: Limiter
    submitter: Submitter = field(init=False)
    echoes: Echoes = field(init=False)
    inbox: Inbox = field(init=False)
    fibers: asyncio.TaskGroup = field(init=False)

    def __post_init__(self) -> None:
        self.submitter = Submitter(self.bus)
        self.echoes = Echoes(self.bus)
        self.inbox = Inbox(self.bus, most=self.settings.inbox_max)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve until left."""
        async with self.echoes.open(), self.limiter.open(), serving() as self.fibers:
            yield


Tell = Callable[[EventKind, Identity, str], Awaitable[None]]
"""Publishes an event of a task, with more for people."""


class DurableContext(Context):
    """The context of an attempt on the mesh. `is_first` promises that nothing of the task is on record.

    `steps` counts what `ran` and what was `replayed` from its record, `handoffs` and `escalations` whom the task is
    passed to, when they are asked, which `tell` is told, too.
    """

    def __init__(
        self,
        *arguments: Any,
        services: Services,
        flow: Flow,
        is_first: bool,
        keep_until: float,
        payload: bytes,
        steps: Mapping[str, Count],
        handoffs: Count,
        escalations: Count,
        tell: Tell,
        is_unwinding: bool = False,
        span: Span = NO_SPAN,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._span = span
        self.keep_until = keep_until
        self.has_records = False
        """Whether this run made or found a record of the task."""
        self._services = services
        self._bus = services.bus
        self._flow = flow
        self._is_first = is_first
        self._is_unwinding = is_unwinding
        self._payload = payload
        self._steps = steps
        self._handoffs = handoffs
        self._escalations = escalations
        self._tell = tell
        self._passed_on: tuple[Count, EventKind] | None = None
        self._has_saga = False
        self._went_on_at = time.monotonic()
        self._hearing: AsyncExitStack | None = None
        self._hearing_begins = asyncio.Lock()
        self.fibers = services.fibers

    async def close(self) -> None:
        """Hear no more of children."""
        self._flow.close()
        if self._hearing is not None:
            await self._hearing.aclose()

    def ttl_s(self) -> float:
        """How long a record made now is kept."""
        return max(1.0, self.keep_until - time.time())

    @asynccontextmanager
    async def limit(self, resource: str, *, tokens: int = 0, within_s: float = WITHIN_S) -> AsyncIterator[Grant]:
        # Refused, a run that only undoes would leave what comes after undone for ever.
        patience_s = math.inf if self._is_unwinding else within_s
        async with super().limit(resource, tokens=tokens, within_s=patience_s) as grant:
            yield grant

    # The primitives of the verbs.

    async def _ask(self, asked: Asked[Any], *, is_missing: bool = False) -> Answered:
        self.has_records = True
        # Parked before its child is submitted, the task would wait for what nobody was asked for.
        with ExitStack() as arming:
            arming.enter_context(self._flow.arming())
            if self._is_unwinding or not (self._is_first or is_missing):
                record = self._bus.subjects.result(asked.identity)
                # Of what is not found nothing is undone.
                surely = self._is_unwinding
                stored = await (read_at_leader(self._bus, self.identity, record) if surely else read(self._bus, record))
                if stored is not None:
                    self._steps["replayed"].inc()
                    found_on_record()
                    found = await self._whole(asked, self._found(asked, stored))
                    await self._went_on(is_failure=found.outcome.failure is not None)
                    return found
            if self._is_unwinding:
                await self._unwind()
            self._steps["ran"].inc()
            await self._hear(asked.identity)
            expected = self._services.echoes.expect(asked.identity, is_new=True)
            is_long = asked.identity.capability == HUMAN
            wait = Wait((self._bus.subjects.result(asked.identity),), is_long=is_long)
            async with self._flow.waiting(wait):
                existing = await self._submit(asked)
                if existing is None and self._passed_on is not None:
                    count, kind = self._passed_on
                    count.inc()
                    self._passed_on = None
                    to, reason = asked.identity.capability, asked.send.task.reason
                    await self._tell(kind, self.identity, f"to {to}: {reason}" if reason else f"to {to}")
                arming.close()
                if existing is not None and self._is_result(existing):
                    stored = existing
                else:
                    stored = await self._services.echoes.wait(expected)
            found = self._found(asked, stored)
            if found.outcome.value_at is None:
                return found
            with self._flow.arming():
                return await self._whole(asked, found)

    async def _ask_many(self, asked: list[Asked[Any]]) -> list[Answered | None]:
        if self._is_first:
            return [None] * len(asked)
        with self._flow.arming():
            found = await read_many(self._bus, [self._bus.subjects.result(one.identity) for one in asked])
        self._steps["replayed"].inc(sum(stored is not None for stored in found))
        return [None if stored is None else self._found(one, stored) for one, stored in zip(asked, found, strict=True)]

    async def _once(self, name: str, run: Callable[[], Coroutine[Any, Any, Step]]) -> Step:
        self.has_records = True
        if not self._is_first:
            with self._flow.arming():
                # A replica that lags must not have a finished step run again, nor end the undoing early.
                step = await read_step(self._bus, self.identity, name, Step, at_leader=True)
                if step is not None:
                    step = await whole_step(self._bus, self.identity, step)
            if step is not None:
                self._steps["replayed"].inc()
                await self._went_on(is_failure=step.failure is not None)
                return step
        if self._is_unwinding and not name.startswith("~~undo-"):
            await self._unwind()
        self._steps["ran"].inc()
        async with self._flow.working():
            with self._tracing.step(name.removeprefix("~~")) if not name.startswith(_BOOKKEEPING) else NO_SPAN:
                step = await run()
            limit = self._services.settings.payload_bytes_max
            if step.value is not msgspec.UNSET and len(bytes(step.value)) > limit:
                raise ContractError(f"value of {len(bytes(step.value))} bytes of step {name!r} exceeds {limit} bytes")
            step = msgspec.structs.replace(step, peer=self._services.peer)
            ttl_s, taken = self.ttl_s(), Taken(self._bus, self.identity, "application/json")
            written = await taken.step(step, ttl_s=ttl_s)
            stands = await write_step(self._bus, self.identity, name, written, ttl_s=ttl_s)
            if stands is not written:
                await taken.remove(but=[] if stands.value_at is None else [stands.value_at])
        if (stands.peer, stands.at) != (step.peer, step.at):
            # One of both runs is a stalled owner's. Whichever it is, the other is ahead, and one is enough.
            await self._flow.overtaken()
        return step if stands is written else await whole_step(self._bus, self.identity, stands)

    async def _until(self, due: float) -> None:
        wait_s = due - time.time()
        if wait_s <= 0:
            return
        if self._is_unwinding:
            await self._unwind()
        self._check_kept(due)
        is_long = wait_s > self._services.settings.hot_wait_s
        self._span.event("sleeps", {"starling.wait_s": wait_s})
        async with self._flow.waiting(Wait(due=due, is_long=is_long)):
            await asyncio.sleep(wait_s)
        self._span.event("slept")

    async def _signalled(self, name: str, within_s: float | None) -> bytes:
        self.has_records = True
        record = signal_name(name)
        due = None if within_s is None else await self._due(f"~~patience-{name}", within_s)
        if due is not None:
            self._check_kept(due)
        # Also on the first run: a signal may be there before its task asks for it.
        with self._flow.arming():
            signal = await read_step(self._bus, self.identity, record, Signal, at_leader=self._is_unwinding)
        if signal is None and self._is_unwinding:
            await self._unwind()
        if signal is None:
            self._span.event("waits for a signal", {"starling.signal": name})
            wait = Wait((self._bus.subjects.step(self.identity, record),), due, is_long=True)
            async with self._flow.waiting(wait):
                signal = await self._await_signal(record, due)
        if signal.is_late:
            raise NobodyAnswered(f"nobody signalled {name!r} to {self.identity} within {within_s:g} s")
        self._span.event("signalled", {"starling.signal": name, "starling.by": signal.by})
        self._span.link(signal.traceparent)
        return bytes(signal.value)

    async def _await_signal(self, record: str, due: float | None) -> Signal:
        while True:
            signal = await read_step(self._bus, self.identity, record, Signal)
            if signal is not None:
                return signal
            if due is not None and time.time() >= due:
                late = Signal(is_late=True, at=time.time())
                return await write_step(self._bus, self.identity, record, late, ttl_s=self.ttl_s())
            await asyncio.sleep(LOOK_EVERY_S if due is None else max(0.0, min(LOOK_EVERY_S, due - time.time())))

    async def _admit_to_inbox(self, asked: Asked[Any]) -> None:
        with self._flow.arming():
            if not self._is_first:
                (found,) = await read_many(self._bus, [self._bus.subjects.result(asked.identity)])
                if found is not None:
                    return
            await self._services.inbox.admit(asked.identity)
        self._span.event("asks a person", {"starling.task.id": asked.identity.id})

    def _passes_on(self, *, is_rung: bool) -> None:
        rung, tail = (self._escalations, EventKind.ESCALATED), (self._handoffs, EventKind.HANDED_OFF)
        self._passed_on = rung if is_rung else tail

    def _is_new_task(self) -> bool:
        return self._is_first

    def _subject(self) -> Any:
        try:
            return msgspec.json.decode(self._payload) if self.content_type == "application/json" else None
        except msgspec.DecodeError:
            return None

    def _child(self, *arguments: Any, **more: Any) -> Send:
        # What a workflow asks for is kept as long as the workflow; what a plain task sends on has its own time.
        if more.get("is_awaited") or self.has_records:
            more["keep_until"] = self.keep_until
        return super()._child(*arguments, **more)

    # Children.

    async def _submit(self, asked: Asked[Any]) -> Stored | None:
        send = asked.send
        limit = self._services.settings.payload_bytes_max
        if len(bytes(send.payload)) > limit:
            raise ContractError(f"payload of {len(bytes(send.payload))} bytes exceeds {limit} bytes")
        queue = self._bus.subjects.queue(send.capability, send.task.priority.lane) if self._tracing.is_on else ""
        with self._tracing.submit(asked.identity, send.task, queue, size=len(bytes(send.payload))) as span:
            existing = await self._submit_traced(asked, span)
            if existing is not None:
                span.tell(DUPLICATE)
            return existing

    async def _submit_traced(self, asked: Asked[Any], span: Span) -> Stored | None:
        send = asked.send
        while True:
            try:
                receipt = await self._services.submitter.submit(
                    asked.identity,
                    bytes(send.payload),
                    send.task,
                    as_type=self.content_type,
                    trace=span.headers or send.trace,
                    give_up_at=time.time() + SUBMIT_WITHIN_S,
                    is_only=asked.is_named,
                )
                return receipt.existing
            except Overloaded as full:
                await asyncio.sleep(full.retry_after_s)
            except (BusUnavailable, PublishUnconfirmed):
                # Its heartbeat stops with its connection; whoever takes the task over finds what is stored.
                await self._bus.until_connected()
            except IdempotencyConflict as conflict:
                raise self._changed(asked, str(conflict)) from conflict

    def _found(self, asked: Asked[Any], stored: Stored) -> Answered:
        outcome = read_outcome(stored)
        if asked.is_named and outcome.digest and outcome.digest != asked.send.task.digest:
            raise self._changed(asked, f"asked then with payload digest {outcome.digest}")
        return Answered(outcome, stored_type(stored))

    async def _whole(self, asked: Asked[Any], answered: Answered) -> Answered:
        outcome = await whole_outcome(self._bus, asked.identity, answered.outcome)
        return answered if outcome is answered.outcome else Answered(outcome, answered.as_type)

    def _changed(self, asked: Asked[Any], then: str) -> NonDeterminism:
        now = bytes(asked.send.payload)[:200].decode("utf-8", "replace")
        return NonDeterminism(
            f"child {asked.identity} is fixed by its name and asked for with something else: {then};"
            f" now {asked.identity.capability} with digest {digest(bytes(asked.send.payload))}: {now}"
        )

    def _is_result(self, stored: Stored) -> bool:
        return stored.subject.startswith(self._bus.subjects.results_of("").rstrip(".>"))

    async def _hear(self, child: Identity) -> None:
        if self._hearing is None:
            async with self._hearing_begins:
                if self._hearing is None:
                    hearing = AsyncExitStack()
                    await hearing.enter_async_context(self._services.echoes.below(self.id))
                    self._hearing = hearing
        await self._services.echoes.hear(child)

    # Undoing.

    async def _went_on(self, *, is_failure: bool) -> None:
        """Take note, while undoing, that a record was found; one that ends a branch waits for the others."""
        if not self._is_unwinding:
            return
        self._went_on_at = time.monotonic()
        if is_failure:
            await self._others_stand_still()

    async def _unwind(self) -> NoReturn:
        """End the run, once every other branch has come as far as the records do."""
        await self._others_stand_still()
        raise Unwinding

    async def _others_stand_still(self) -> None:
        # A branch that ends cancels those beside it, which then register nothing to be undone.
        while (still_s := time.monotonic() - self._went_on_at) < STANDS_STILL_S:  # noqa: ASYNC110  # no event
            await asyncio.sleep(STANDS_STILL_S - still_s)

    async def _declare_saga(self) -> None:
        if not self._has_saga and not self._is_unwinding:
            self._has_saga = self.has_records = True
            with self._flow.arming():
                await write_step(self._bus, self.identity, SAGA, Step(), ttl_s=self.ttl_s())

    async def undo(self) -> None:
        """Run the compensations that this run registered, last one first; those on record not again.

        Raises:
            Exception: what a compensation raises; the ones before it are not undone yet.
        """
        for compensation in reversed(self.compensations):
            step = await self._once(compensation.name, compensation.undo)
            if step.failure is not None:
                name = compensation.name.removeprefix("~~undo-")
                raise ContractError(f"compensation {name} cannot be done: {step.failure.message}")

    def _check_kept(self, due: float) -> None:
        if due > self.keep_until:
            raise ContractError(
                f"a wait until {due:.0f} outlasts the records of {self.identity}, which are kept until"
                f" {self.keep_until:.0f}: MESH_WORKFLOW_TTL_S is {self._services.settings.workflow_ttl_s:g} s"
            )
