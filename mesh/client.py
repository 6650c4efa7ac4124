"""The submitter's side: ask for work, wait for results, watch parts, look and cancel."""

import asyncio
import itertools
import math
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, overload

import msgspec

from contracts.outcome import Outcome
from contracts.subjects import (
    SESSION,
    Identity,
    Line,
    check_capability,
    check_key,
    check_order_key,
    check_step_name,
    session_child,
)
from contracts.task import Budget, Priority, PriorityName, Sender, Task
from contracts.wire import ContentType
from contracts.workflow import Signal
from mesh import payload as payloads
from mesh.bus import control
from mesh.bus.commit import read_outcome, read_result, stored_type
from mesh.bus.connection import Bus
from mesh.bus.echoes import Echoes, Expectation
from mesh.bus.outsized import whole_outcome
from mesh.bus.parks import wake_tree
from mesh.bus.places import Places
from mesh.bus.records import Stored
from mesh.bus.steps import read_trace, send_signal
from mesh.bus.submit import Submitter
from mesh.digest import digest
from mesh.errors import (
    ContractError,
    DeadlineExceeded,
    MeshError,
    Overloaded,
)
from mesh.fibers import serving
from mesh.local.discovery import with_local_server
from mesh.payload import Shape, shape_of
from mesh.reference import Reference
from mesh.results import Mapped, value_of
from mesh.settings import Settings
from mesh.streaming import Missed, Part, Restarted, follow
from mesh.telemetry import tracing
from mesh.telemetry.tracing import DUPLICATE, OFF, Tracing
from mesh.whereabouts import Whereabouts, find

I = TypeVar("I")  # noqa: E741  # the pair reads as input and output
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")

SUBMIT_WITHIN_S = 30.0
"""How long a submission without a deadline is repeated while no server answers."""


class Handle(Generic[O]):
    """One submitted task. It may be waited for any number of times, by any number of fibers."""

    def __init__(self, mesh: "Mesh", expected: Expectation, returns: Shape[O], *, is_new: bool) -> None:
        self.task = expected.task
        self.is_new = is_new
        """False where the key was submitted before, and this submission started nothing."""
        self._mesh = mesh
        self._expected = expected
        self._returns = returns

    @property
    def id(self) -> str:
        return self.task.id

    async def result(self, *, within_s: float | None = None) -> O:
        """The value the task came to.

        Raises:
            TaskFailed, TaskCancelled, TaskExpired: it came to none; each carries the outcome.
            DeadlineExceeded: it is not done within `within_s` seconds; it goes on.
            ContractError: the recorded value is not of the type asked for.
            ObjectGone: a large value is not kept any more.
        """
        stored = await self._record(within_s)
        outcome = await self._whole(read_outcome(stored), within_s)
        return value_of(self.task, outcome, stored_type(stored), self._returns)

    async def outcome(self, *, within_s: float | None = None) -> Outcome:
        """The whole result record, whatever the task came to, with its value also where that is kept beside it.

        Raises:
            DeadlineExceeded: the task is not done within `within_s` seconds; it goes on.
            ObjectGone: a large value is not kept any more.
        """
        return await self._whole(read_outcome(await self._record(within_s)), within_s)

    def stream(self) -> AsyncIterator[Part | Restarted | Missed]:
        """Parts as the handler emits them, ending when the result is recorded.

        `Restarted` says that another attempt starts over, `Missed` that parts went by unseen; the recorded
        result stays authoritative.
        """
        return follow(self._mesh.bus, self.task, self._mesh._fibers.create_task(self._record(None)))

    async def status(self) -> Whereabouts:
        """Where the task is: queued, running, waiting for a retry, done, or orphaned."""
        return await find(self._mesh.bus, self.task)

    async def cancel(self, *, reason: str = "") -> None:
        """Cancel the task and everything below it. Safe to repeat; a finished task stays as it is."""
        await self._mesh.cancel(self.task.capability, self.task.id, reason=reason)

    async def _whole(self, outcome: Outcome, within_s: float | None) -> Outcome:
        if outcome.value_at is None:
            return outcome
        try:
            async with asyncio.timeout(within_s) as limit:
                return await whole_outcome(self._mesh.bus, self.task, outcome)
        except TimeoutError:
            if not limit.expired():
                raise
            told = f"{self.task} is done, its value of {outcome.value_at.bytes} bytes is not read within {within_s:g} s"
            raise DeadlineExceeded(told) from None

    async def _record(self, within_s: float | None) -> Stored:
        if within_s is None:
            return await self._mesh._echoes.wait(self._expected)
        try:
            async with asyncio.timeout(within_s) as limit:
                return await self._mesh._echoes.wait(self._expected)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"{self.task} is not done within {within_s:g} s; it goes on") from None

    def __repr__(self) -> str:
        return f"Handle({self.task})"


class Mesh:
    """A client of the mesh, made by `Mesh.connect()`."""

    def __init__(self, bus: Bus, *, sender: Sender, tracing: Tracing = OFF) -> None:
        self.bus = bus
        self.tracing = tracing
        self.session = f"s-{secrets.token_hex(8)}"
        self._sender = sender
        self._echoes = Echoes(bus)
        self._submitter = Submitter(bus, is_bounded=True)
        self._places = Places(bus, self._submitter)
        self._tokens = itertools.count()
        self._fibers: asyncio.TaskGroup

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        name: str = "client",
        tracer_provider: Any = None,
    ) -> AsyncIterator["Mesh"]:
        """A client until left. `url` goes before MESH_NATS_URL; without either, the mesh that `mesh up` runs here.

        What it submits is traced by OpenTelemetry's `tracer_provider`, or as MESH_TRACES says.

        Raises:
            SetupError: no server is named and none runs here.
            BusUnavailable: no server answered within `connect_within_s`.
        """
        settings = with_local_server(settings or Settings(), url)
        async with Bus.connect(settings, name) as bus:
            traced = tracing.started(settings, provider=tracer_provider, service=name, instance=name)
            mesh = cls(bus, sender=Sender(agent=name, role="client"), tracing=traced)
            try:
                async with mesh._echoes.open(), mesh._echoes.below(mesh.session), serving() as mesh._fibers:
                    yield mesh
            finally:
                await traced.flush()

    # Asking.

    @overload
    async def submit(
        self,
        capability: Reference[I, O],
        payload: I = ...,
        *,
        key: str | None = None,
        order_key: str | None = None,
        priority: PriorityName = ...,
        deadline_s: float | None = None,
        conversation: str = "",
        budget: Budget | None = None,
        reason: str = "",
        content_type: ContentType = ...,
    ) -> Handle[O]: ...
    @overload
    async def submit(
        self,
        capability: str,
        payload: Any = ...,
        *,
        returns: type[R],
        key: str | None = None,
        order_key: str | None = None,
        priority: PriorityName = ...,
        deadline_s: float | None = None,
        conversation: str = "",
        budget: Budget | None = None,
        reason: str = "",
        content_type: ContentType = ...,
    ) -> Handle[R]: ...
    @overload
    async def submit(
        self,
        capability: str,
        payload: Any = ...,
        *,
        key: str | None = None,
        order_key: str | None = None,
        priority: PriorityName = ...,
        deadline_s: float | None = None,
        conversation: str = "",
        budget: Budget | None = None,
        reason: str = "",
        content_type: ContentType = ...,
    ) -> Handle[Any]: ...
    async def submit(
        self,
        capability: Reference[Any, Any] | str,
        payload: Any = None,
        *,
        returns: Any = Any,
        key: str | None = None,
        order_key: str | None = None,
        priority: PriorityName = "normal",
        deadline_s: float | None = None,
        conversation: str = "",
        budget: Budget | None = None,
        reason: str = "",
        content_type: ContentType = "application/json",
    ) -> Handle[Any]:
        """Store a task in its queue; what comes back waits for its result.

        `key` is the idempotency key: while the task or its result is kept, submitting it again runs nothing
        and gives a handle on the same task. Without one the task gets an id of its own. Past `deadline_s`
        seconds the task is answered `expired`; it also bounds how long the submission itself is repeated while
        no server answers. Cancelled midway, the task may or may not be stored.

        `priority` names the queue: urgent tasks start before normal ones, those before bulk, and none starves.
        What a task asks for has the task's own.

        Tasks of one capability with the same `order_key` run one at a time, in the order in which they were
        stored; each waits until the one before it has its result, whatever that is. A `key` is then one of
        that line's, and other tasks are not held up.

        Raises:
            ContractError: a key or the capability's name is illegal, or the payload is too large, cannot
                travel or is not of the capability's type; nothing was sent.
            IdempotencyConflict: the key stands for another payload.
            Overloaded: the mesh takes no new tasks now, or as many wait for the capability as may; nothing was stored.
                `retry_after_s` says when there may be room.
            BusUnavailable, PublishUnconfirmed: no server answered in time; it was not stored, or may be.
        """
        return await self._submit(
            capability,
            payload,
            returns=returns,
            key=key,
            order_key=order_key,
            priority=priority,
            deadline_s=deadline_s,
            conversation=conversation,
            budget=budget,
            reason=reason,
            content_type=content_type,
        )

    def handle(self, capability: Reference[Any, O] | str, key: str, *, returns: type[O] | None = None) -> Handle[O]:
        """A handle on a task that was submitted before, here or elsewhere, under a key. Asks nobody."""
        if isinstance(capability, Reference):
            task, shape = Identity(capability.name, key), capability.output
        else:
            task, shape = Identity(check_capability(capability), key), shape_of(Any if returns is None else returns)
        return Handle(self, self._echoes.expect(task, is_new=False), shape, is_new=False)

    async def map(
        self,
        capability: Reference[I, O] | str,
        payloads: Iterable[I] | AsyncIterable[I],
        *,
        in_flight: int = 256,
        ordered: bool = False,
        returns: type[O] | None = None,
        keys: Iterable[str] | None = None,
        priority: PriorityName = "normal",
        deadline_s: float | None = None,
        content_type: ContentType = "application/json",
    ) -> AsyncIterator[Mapped[O]]:
        """Submit every payload and yield what each came to, failures as values.

        At most `in_flight` tasks are out at once, and payloads are drawn no faster, so memory is bounded
        however many there are. While the mesh is `Overloaded` it waits and tries again, up to `deadline_s`.
        `ordered` yields in the payloads' order, else as they finish. Leaving the iteration early leaves what
        was submitted to run.

        Raises:
            ValueError: `in_flight` is below 1, or there are fewer keys than payloads.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}; it must be at least 1")
        source = _numbered(payloads, keys)
        done: asyncio.Queue[asyncio.Task[Mapped[O]]] = asyncio.Queue()
        out: dict[asyncio.Task[Mapped[O]], None] = {}
        is_drawn = False

        async def one(index: int, payload: I, key: str | None) -> Mapped[O]:
            task: Identity | None = None
            give_up_at = math.inf if deadline_s is None else time.monotonic() + deadline_s
            while True:
                try:
                    handle: Handle[Any] = await self._submit(
                        capability,
                        payload,
                        returns=Any if returns is None else returns,
                        key=key,
                        order_key=None,
                        priority=priority,
                        deadline_s=deadline_s,
                        content_type=content_type,
                    )
                    task = handle.task
                    return Mapped(index, task, value=await handle.result())
                except Overloaded as error:
                    if time.monotonic() + error.retry_after_s >= give_up_at:
                        return Mapped(index, task, error=error)
                    await asyncio.sleep(error.retry_after_s)
                except MeshError as error:
                    return Mapped(index, task, error=error)

        try:
            while True:
                while not is_drawn and len(out) < in_flight:
                    try:
                        index, payload, key = await anext(source)
                    except StopAsyncIteration:
                        is_drawn = True
                        break
                    fiber = self._fibers.create_task(one(index, payload, key))
                    out[fiber] = None
                    if not ordered:
                        fiber.add_done_callback(done.put_nowait)
                if not out:
                    return
                finished = next(iter(out)) if ordered else await done.get()
                del out[finished]
                yield await finished
        finally:
            for fiber in out:
                fiber.cancel()

    async def _submit(
        self,
        capability: Reference[Any, Any] | str,
        payload: Any,
        *,
        returns: Any,
        key: str | None,
        order_key: str | None,
        priority: str,
        deadline_s: float | None,
        content_type: ContentType,
        conversation: str = "",
        budget: Budget | None = None,
        reason: str = "",
    ) -> Handle[Any]:
        if isinstance(capability, Reference):
            name, shape = capability.name, capability.output
            encoded = capability.input.encode(payload, content_type)
        else:
            name, shape = check_capability(capability), shape_of(returns)
            encoded = payloads.encode(payload, content_type)
        if len(encoded) > self.bus.settings.payload_bytes_max:
            raise ContractError(f"payload of {len(encoded)} bytes exceeds {self.bus.settings.payload_bytes_max} bytes")
        if deadline_s is not None and deadline_s <= 0:
            raise ContractError(f"deadline_s is {deadline_s:g}; it counts from now and must be above 0")
        task_id = check_key(key) if key is not None else session_child(self.session, next(self._tokens))
        line = None if order_key is None else Line(name, check_order_key(order_key))
        now = time.time()
        task = Task(
            digest=digest(encoded) if key is not None else "",
            priority=_priority(priority),
            deadline=now + deadline_s if deadline_s is not None else None,
            sender=self._sender,
            lineage=() if key is not None and line is None else (SESSION,),
            conversation=conversation,
            budget=budget,
            reason=reason,
        )
        give_up_at = now + (SUBMIT_WITHIN_S if deadline_s is None else deadline_s)
        if line is not None:
            placed = Identity(name, f"{line.key}.{task_id}")
            with self.tracing.submit(placed, task, self._queue(name, task), size=len(encoded)) as span:
                receipt = await self._places.submit(
                    line,
                    encoded,
                    task,
                    key=key or "",
                    name=task_id,
                    as_type=content_type,
                    trace=span.headers,
                    give_up_at=give_up_at,
                )
                span.tell({"messaging.message.id": receipt.task.id, "starling.task.id": receipt.task.id})
            expected = self._echoes.expect(receipt.task, is_new=False)
            return Handle(self, expected, shape, is_new=receipt.is_new)
        identity = Identity(name, task_id)
        if key is None:
            await self._echoes.hear(identity)
        expected = self._echoes.expect(identity, is_new=key is None)
        with self.tracing.submit(identity, task, self._queue(name, task), size=len(encoded)) as span:
            receipt = await self._submitter.submit(
                identity, encoded, task, as_type=content_type, trace=span.headers, give_up_at=give_up_at
            )
            if not receipt.is_new:
                span.tell(DUPLICATE)
        return Handle(self, expected, shape, is_new=receipt.is_new)

    def _queue(self, capability: str, task: Task) -> str:
        return self.bus.subjects.queue(capability, task.priority.lane) if self.tracing.is_on else ""

    async def signal(
        self, capability: Reference[Any, Any] | str, key: str, name: str, value: Any = None, *, by: str = ""
    ) -> None:
        """Send a task what its `ctx.signal(name)` waits for, or will. The first signal of a name counts.

        Repeated by this call until the server answers; cancelled midway, it may have been sent.

        Raises:
            SignalRefused: another one came first, the task is over, or there is no such task.
            ContractError: the name is illegal, or the value cannot travel.
        """
        target = capability.name if isinstance(capability, Reference) else check_capability(capability)
        task, encoded = Identity(target, key), payloads.encode(value)
        check_step_name(name)
        of_task = await read_trace(self.bus, task) if self.tracing.is_on else {}
        with self.tracing.signal(task, name, of_task) as span:
            signal = Signal(
                value=msgspec.Raw(encoded),
                by=by or self._sender.agent,
                at=time.time(),
                nonce=secrets.token_hex(8),
                traceparent=span.traceparent,
            )
            await send_signal(self.bus, task, name, signal, ttl_s=self.bus.settings.workflow_ttl_s)

    # Looking and cancelling.

    async def status(self, capability: Reference[Any, Any] | str, key: str) -> Whereabouts:
        """Where a task is; asks the stream and the peers."""
        name = capability.name if isinstance(capability, Reference) else check_capability(capability)
        return await find(self.bus, Identity(name, key))

    async def cancel(self, capability: Reference[Any, Any] | str, key: str, *, reason: str = "") -> None:
        """Cancel a task and everything below it, queued or running. Safe to repeat.

        It is answered `cancelled`, at once where it only waits; a handler that runs is ended at its next await.
        What hangs below it is answered when a peer touches it next. A finished task stays as it is.
        """
        name = capability.name if isinstance(capability, Reference) else check_capability(capability)
        task = Identity(name, key)
        if await read_result(self.bus, task) is None:
            ttl_s = self.bus.settings.result_ttl_s
            await control.cancel(self.bus, task, by=self._sender.agent, reason=reason, ttl_s=ttl_s)
            # Peers hear of it and may die: what is parked is woken here, where it can be repeated.
            await wake_tree(self.bus, task)


async def _numbered(
    payloads: Iterable[I] | AsyncIterable[I], keys: Iterable[str] | None
) -> AsyncIterator[tuple[int, I, str | None]]:
    names = iter(keys) if keys is not None else None
    index = 0
    if isinstance(payloads, AsyncIterable):
        async for payload in payloads:
            yield index, payload, _next_key(names)
            index += 1
    else:
        for payload in payloads:
            yield index, payload, _next_key(names)
            index += 1


def _next_key(names: Any) -> str | None:
    if names is None:
        return None
    try:
        key: str = next(names)
    except StopIteration:
        raise ValueError("there are fewer keys than payloads") from None
    return key


def _priority(name: str) -> Priority:
    try:
        return Priority(name)
    except ValueError:
        raise ContractError(f"priority {name!r} is none of {', '.join(Priority)}") from None
