"""Results as they are stored: the server's echo of each, for those who wait.

One subscription covers everything a client's session asks for; a task under a key of the user's choice gets
one of its own while somebody waits for it. An echo is not stored, so it can be missed: one fiber reads the
records of all who wait after each reconnection, and of those who wait long now and then.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers as names
from contracts.subjects import Identity, root_of
from mesh.bus.connection import Bus
from mesh.bus.records import Stored, read_many
from mesh.fibers import serving

TICK_S = 0.5
READ_AFTER_S = 5.0
READ_AFTER_S_MAX = 60.0
PAGE = 500


@dataclass(slots=True)
class _Expected:
    """Who waits for one result, and when its record is read in case its echo was missed."""

    task: Identity
    read_at: float
    read_after_s: float = READ_AFTER_S
    futures: list[asyncio.Future[Stored]] = field(default_factory=list)


class Echoes:
    """Waits for results over one bus. Results of tasks below `session` are heard without asking."""

    def __init__(self, bus: Bus, session: str) -> None:
        self._bus = bus
        self._session = session
        self._expected: dict[str, _Expected] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._reconnected = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        subject = self._bus.subjects.done_below(self._session)
        await self._bus.nc.subscribe(subject, cb=self._heard, pending_msgs_limit=0, pending_bytes_limit=0)
        off = self._bus.on_reconnect(self._reconnected.set)
        try:
            async with serving(self._keep_reading()):
                yield
        finally:
            off()
            for expected in self._expected.values():
                for future in expected.futures:
                    future.cancel()

    async def expect(self, task: Identity) -> asyncio.Future[Stored]:
        """A future that the task's result record resolves, from now on. `forget` it when done with it.

        Expect before submitting, and no result is missed.
        """
        subject = self._bus.subjects.done(task)
        expected = self._expected.get(subject)
        if expected is None:
            expected = self._expected[subject] = _Expected(task, time.monotonic() + READ_AFTER_S)
            if root_of(task.id) != self._session:
                self._subscriptions[subject] = await self._bus.nc.subscribe(subject, cb=self._heard)
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        expected.futures.append(future)
        return future

    def read_soon(self, task: Identity) -> None:
        """Have the record read at once: it may be older than the expectation."""
        expected = self._expected.get(self._bus.subjects.done(task))
        if expected is not None:
            expected.read_at = 0.0
            self._reconnected.set()

    async def forget(self, task: Identity, future: asyncio.Future[Stored]) -> None:
        """Take an expectation back."""
        subject = self._bus.subjects.done(task)
        expected = self._expected.get(subject)
        if expected is not None:
            if future in expected.futures:
                expected.futures.remove(future)
            if expected.futures:
                return
            del self._expected[subject]
        subscription = self._subscriptions.pop(subject, None)
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _heard(self, message: Msg) -> None:
        if message.subject in self._expected:
            found = message.headers or {}
            self._resolve(
                message.subject,
                Stored(
                    subject=found.get(names.SUBJECT, ""),
                    sequence=int(found.get(names.SEQUENCE, 0)),
                    stored_at=0.0,
                    data=message.data,
                    headers=found,
                ),
            )

    def _resolve(self, subject: str, stored: Stored) -> None:
        expected = self._expected.pop(subject, None)
        for future in expected.futures if expected is not None else ():
            if not future.done():
                future.set_result(stored)

    async def _keep_reading(self) -> None:
        reconnects = self._bus.reconnects
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._reconnected.wait()
            self._reconnected.clear()
            now = time.monotonic()
            has_reconnected, reconnects = self._bus.reconnects != reconnects, self._bus.reconnects
            due = [
                (subject, expected)
                for subject, expected in self._expected.items()
                if has_reconnected or expected.read_at <= now
            ]
            for _, expected in due:
                expected.read_at = now + expected.read_after_s
                expected.read_after_s = min(2 * expected.read_after_s, READ_AFTER_S_MAX)
            for start in range(0, len(due), PAGE):
                page = due[start : start + PAGE]
                records = [self._bus.subjects.result(expected.task) for _, expected in page]
                for (subject, _), stored in zip(page, await read_many(self._bus, records), strict=True):
                    if stored is not None:
                        self._resolve(subject, stored)
