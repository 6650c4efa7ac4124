"""The client for scripts and notebooks: the same calls, blocking.

    from mesh import sync

    with sync.connect() as mesh:
        review = mesh.submit("review-file", {"path": "a.py", "text": "..."}, key="a").result()

An event loop in a thread of its own serves it, so it works where another loop runs already, as in a notebook.
Calls may come from several threads. What is raised is what the async client raises; Ctrl-C ends the wait, not
the task.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, contextmanager
from typing import Any, Generic, TypeVar, overload

from contracts.outcome import Outcome
from contracts.task import Budget, PriorityName
from contracts.wire import ContentType
from mesh import client
from mesh.errors import BusUnavailable
from mesh.reference import Reference
from mesh.results import Mapped
from mesh.settings import Settings
from mesh.streaming import Missed, Part, Restarted
from mesh.whereabouts import Whereabouts

I = TypeVar("I")  # noqa: E741  # the pair reads as input and output
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")
T = TypeVar("T")


@contextmanager
def connect(
    url: str | None = None, *, settings: Settings | None = None, name: str = "client", tracer_provider: Any = None
) -> Iterator["Mesh"]:
    """A client until left. `url` goes before MESH_NATS_URL; without either, the mesh that `mesh up` runs here.

    What it submits is traced by OpenTelemetry's `tracer_provider`, or as MESH_TRACES says.

    Raises:
        SetupError: no server is named and none runs here.
        BusUnavailable: no server answered within `connect_within_s`.
    """
    thread = _LoopThread(
        lambda: client.Mesh.connect(url, settings=settings, name=name, tracer_provider=tracer_provider)
    )
    mesh = thread.start()
    try:
        yield Mesh(mesh, thread)
    finally:
        thread.stop()


class Handle(Generic[O]):
    """One submitted task. It may be waited for any number of times."""

    def __init__(self, handle: client.Handle[O], thread: "_LoopThread") -> None:
        self._handle = handle
        self._thread = thread
        self.task = handle.task
        self.is_new = handle.is_new
        """False where the key was submitted before, and this submission started nothing."""

    @property
    def id(self) -> str:
        return self.task.id

    def result(self, *, within_s: float | None = None) -> O:
        """The value the task came to.

        Raises:
            TaskFailed, TaskCancelled, TaskExpired: it came to none; each carries the outcome.
            DeadlineExceeded: it is not done within `within_s` seconds; it goes on.
            ContractError: the recorded value is not of the type asked for.
        """
        return self._thread.call(self._handle.result(within_s=within_s))

    def outcome(self, *, within_s: float | None = None) -> Outcome:
        """The whole result record, whatever the task came to."""
        return self._thread.call(self._handle.outcome(within_s=within_s))

    def stream(self) -> Iterator[Part | Restarted | Missed]:
        """Parts as the handler emits them, ending when the result is recorded."""
        return self._thread.iterate(self._handle.stream)

    def status(self) -> Whereabouts:
        """Where the task is: queued, running, waiting for a retry, done, or orphaned."""
        return self._thread.call(self._handle.status())

    def cancel(self, *, reason: str = "") -> None:
        """Cancel the task and everything below it. Safe to repeat; a finished task stays as it is."""
        self._thread.call(self._handle.cancel(reason=reason))

    def __repr__(self) -> str:
        return f"Handle({self.task})"


class Mesh:
    """A blocking client of the mesh, made by `connect()`."""

    def __init__(self, mesh: client.Mesh, thread: "_LoopThread") -> None:
        self._mesh = mesh
        self._thread = thread

    @overload
    def submit(
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
    def submit(
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
    def submit(
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
    def submit(self, capability: Reference[Any, Any] | str, payload: Any = None, **options: Any) -> Handle[Any]:
        """Store a task in its queue; what comes back waits for its result. See `mesh.Mesh.submit`.

        Interrupted midway, the task may or may not be stored.

        Raises:
            ContractError: a key, the name or the payload is illegal; nothing was sent.
            IdempotencyConflict: the key stands for another payload.
            Overloaded: the mesh takes no new tasks now; nothing was stored.
            BusUnavailable, PublishUnconfirmed: no server answered in time; it was not stored, or may be.
        """
        return Handle(self._thread.call(self._mesh.submit(capability, payload, **options)), self._thread)

    def map(
        self,
        capability: Reference[I, O] | str,
        payloads: Iterable[I],
        *,
        in_flight: int = 256,
        ordered: bool = False,
        returns: type[O] | None = None,
        keys: Iterable[str] | None = None,
        priority: PriorityName = "normal",
        deadline_s: float | None = None,
        content_type: ContentType = "application/json",
    ) -> Iterator[Mapped[O]]:
        """Submit every payload and yield what each came to, failures as values.

        At most `in_flight` tasks are out at once, and payloads are drawn no faster, in a thread that is not the
        caller's. `ordered` yields in the payloads' order, else as they finish. Leaving the iteration early
        leaves what was submitted to run.

        Raises:
            ValueError: `in_flight` is below 1, or there are fewer keys than payloads.
        """
        # What makes payloads may block, or call this very client: never in the loop's own thread.
        drawn = payloads if isinstance(payloads, (list, tuple, range)) else _drawn(payloads)
        return self._thread.iterate(
            lambda: self._mesh.map(
                capability,
                drawn,
                in_flight=in_flight,
                ordered=ordered,
                returns=returns,
                keys=keys,
                priority=priority,
                deadline_s=deadline_s,
                content_type=content_type,
            )
        )

    def handle(self, capability: Reference[Any, O] | str, key: str, *, returns: type[O] | None = None) -> Handle[O]:
        """A handle on a task that was submitted before, here or elsewhere, under a key. Asks nobody."""
        return Handle(self._mesh.handle(capability, key, returns=returns), self._thread)

    def signal(
        self, capability: Reference[Any, Any] | str, key: str, name: str, value: Any = None, *, by: str = ""
    ) -> None:
        """Send a task what its `ctx.signal(name)` waits for, or will. The first signal of a name counts.

        Raises:
            SignalRefused: another one came first, the task is over, or there is no such task.
            ContractError: the name is illegal, or the value cannot travel.
        """
        self._thread.call(self._mesh.signal(capability, key, name, value, by=by))

    def status(self, capability: Reference[Any, Any] | str, key: str) -> Whereabouts:
        """Where a task is; asks the stream and the peers."""
        return self._thread.call(self._mesh.status(capability, key))

    def cancel(self, capability: Reference[Any, Any] | str, key: str, *, reason: str = "") -> None:
        """Cancel a task and everything below it, queued or running. Safe to repeat."""
        self._thread.call(self._mesh.cancel(capability, key, reason=reason))


class _LoopThread:
    """An event loop in a thread, with a client open in it."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened
        self._ready: Future[client.Mesh] = Future()
        self._loop: asyncio.AbstractEventLoop
        self._left: asyncio.Event
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="mesh-sync", daemon=True)

    def start(self) -> client.Mesh:
        self._thread.start()
        try:
            return self._ready.result()
        except BaseException:
            # Interrupted while it connects: the thread leaves as soon as it is connected.
            self._ready.cancel()
            raise

    def stop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine comes to in the loop; an interrupted wait cancels it."""
        if not self._is_open():
            coroutine.close()
            raise BusUnavailable(f"this client is closed{self._why()}")
        waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return waiting.result()
        except CancelledError:
            raise BusUnavailable(f"this client was closed meanwhile{self._why()}") from None
        except BaseException:
            waiting.cancel()
            raise

    def iterate(self, opened: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """What an asynchronous iterator yields in the loop, which runs one item ahead; closed when left."""
        items: asyncio.Queue[T] = asyncio.Queue(1)
        if not self._is_open():
            raise BusUnavailable(f"this client is closed{self._why()}")
        # In one fiber from end to end, as an `async for` would be.
        pump = asyncio.run_coroutine_threadsafe(_pump(opened, items), self._loop)
        try:
            while (item := self.call(items.get())) is not _END:
                yield item
            pump.result()
        finally:
            pump.cancel()

    def _is_open(self) -> bool:
        return self._thread.is_alive() and not self._left.is_set()

    def _why(self) -> str:
        return f": {self._failure}" if self._failure is not None else ""

    def _serve(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001  # handed to the threads that wait
            self._failure = error
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()
        async with self._opened() as mesh:
            if self._ready.set_running_or_notify_cancel():
                self._ready.set_result(mesh)
                await self._left.wait()


async def _drawn(payloads: Iterable[T]) -> AsyncIterator[T]:
    source = iter(payloads)
    while True:
        payload = await asyncio.to_thread(next, source, _END)
        if payload is _END:
            return
        yield payload


async def _pump(opened: Callable[[], Any], items: asyncio.Queue[Any]) -> None:
    is_left = False
    async with aclosing(opened()) as source:
        try:
            async for item in source:
                await items.put(item)
        except asyncio.CancelledError:
            is_left = True
            raise
        finally:
            if not is_left:
                await items.put(_END)


_END: Any = object()
