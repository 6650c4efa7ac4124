"""Results as they are stored: the server's echo of each, for those who wait.

One subscription covers what is asked of one capability below an id: a client's session, or a task that waits for its
children. So whoever asks need not be allowed to hear what others come to. A task under a key of the user's choice gets
one of its own while somebody waits for it. An echo is not stored, so it can be missed: one fiber reads the records of
all who wait after each reconnection and each election of the stream's leader, and of those who wait long now and then.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers as names
from contracts.subjects import Identity, parent_of
from mesh.bus.connection import Bus
from mesh.bus.leader import stream_elections
from mesh.bus.provenance import is_echo
from mesh.bus.records import Stored, read_many
from mesh.fibers import serving

TICK_S = 0.5
READ_AFTER_S = 5.0
READ_AFTER_S_MAX = 60.0
PAGE = 500


class Expectation:
    """One task's result record, once it is known. It is kept for as long as somebody holds it."""

    __slots__ = ("__weakref__", "read_after_s", "read_at", "stored", "task", "waiters")

    def __init__(self, task: Identity, *, read_at: float) -> None:
        self.task = task
        self.read_at = read_at
        self.read_after_s = READ_AFTER_S
        self.stored: Stored | None = None
        self.waiters: list[asyncio.Future[Stored]] = []

    def resolve(self, stored: Stored) -> None:
        self.stored = stored
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(stored)


class Echoes:
    """Waits for results over one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._below: dict[str, int] = {}
        self._heard_of: dict[tuple[str, str], Subscription] = {}
        self._subscribing = asyncio.Lock()
        self._expected: WeakValueDictionary[str, Expectation] = WeakValueDictionary()
        self._subscriptions: dict[str, Subscription] = {}
        self._read_now = asyncio.Event()
        self._may_have_missed = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve until left."""
        off = self._bus.on_reconnect(self._look_now)
        elections = stream_elections(self._bus.subjects.stream)
        try:
            async with self._bus.listening(elections, lambda *_: self._look_now()), serving(self._keep_reading()):
                yield
        finally:
            off()
            for expected in list(self._expected.values()):
                for waiter in expected.waiters:
                    waiter.cancel()

    @asynccontextmanager
    async def below(self, parent: str) -> AsyncIterator[None]:
        """Hear the results of those children of an id that `hear` names, until left."""
        self._below[parent] = self._below.get(parent, 0) + 1
        try:
            yield
        finally:
            self._below[parent] -= 1
            if not self._below[parent]:
                del self._below[parent]
                for heard_of in [one for one in self._heard_of if one[1] == parent]:
                    with suppress(nats.errors.Error):
                        await self._heard_of.pop(heard_of).unsubscribe()

    async def hear(self, task: Identity) -> None:
        """Hear the result of a child that is to be submitted, and of its siblings of the same capability."""
        heard_of = task.capability, parent_of(task.id)
        if heard_of in self._heard_of:
            return
        async with self._subscribing:
            if heard_of not in self._heard_of:
                self._heard_of[heard_of] = await self._bus.nc.subscribe(
                    self._bus.subjects.done_below(*heard_of),
                    cb=self._heard,
                    pending_msgs_limit=0,
                    pending_bytes_limit=0,
                )

    def expect(self, task: Identity, *, is_new: bool) -> Expectation:
        """What becomes of a task. `is_new` promises that it is not submitted yet, so that no echo is missed."""
        subject = self._bus.subjects.done(task)
        expected = self._expected.get(subject)
        if expected is None:
            is_heard = is_new and self._is_heard_of(task)
            expected = Expectation(task, read_at=time.monotonic() + READ_AFTER_S if is_heard else 0.0)
            self._expected[subject] = expected
        return expected

    async def wait(self, expected: Expectation) -> Stored:
        """The result record. Waits for ever; give it a deadline. Any number may wait."""
        if expected.stored is not None:
            return expected.stored
        subject = ""
        if not self._is_heard_of(expected.task):
            subject = self._bus.subjects.done(expected.task)
            if subject not in self._subscriptions:
                # Nobody listened until now: what was stored meanwhile is only on record.
                expected.read_at = 0.0
                self._subscriptions[subject] = await self._bus.nc.subscribe(subject, cb=self._heard)
        if not expected.read_at:
            self._read_now.set()
        waiter: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        expected.waiters.append(waiter)
        try:
            return await waiter
        finally:
            expected.waiters.remove(waiter)
            if subject and not expected.waiters:
                await self._unsubscribe(subject)

    def _is_heard_of(self, task: Identity) -> bool:
        return (task.capability, parent_of(task.id)) in self._heard_of

    async def _unsubscribe(self, subject: str) -> None:
        subscription = self._subscriptions.pop(subject, None)
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _heard(self, message: Msg) -> None:
        expected = self._expected.get(message.subject)
        if expected is None:
            return
        subjects, found = self._bus.subjects, message.headers or {}
        if not is_echo(found, stream=subjects.stream, subject=subjects.result(expected.task)):
            return
        expected.resolve(
            Stored(
                subject=found.get(names.SUBJECT, ""),
                sequence=int(found.get(names.SEQUENCE, 0)),
                stored_at=0.0,
                data=message.data,
                headers=found,
            )
        )

    def _look_now(self) -> None:
        """Read what everybody waits for: echoes were missed, or died with the server that was to send them."""
        self._may_have_missed = True
        self._read_now.set()

    async def _keep_reading(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._read_now.wait()
            self._read_now.clear()
            now = time.monotonic()
            may_have_missed, self._may_have_missed = self._may_have_missed, False
            due = [
                expected
                for expected in list(self._expected.values())
                if expected.waiters and expected.stored is None and (may_have_missed or expected.read_at <= now)
            ]
            for expected in due:
                expected.read_at = now + expected.read_after_s
                expected.read_after_s = min(2 * expected.read_after_s, READ_AFTER_S_MAX)
            for start in range(0, len(due), PAGE):
                page = due[start : start + PAGE]
                records = [self._bus.subjects.result(expected.task) for expected in page]
                for expected, stored in zip(page, await read_many(self._bus, records), strict=True):
                    if stored is not None and expected.stored is None:
                        expected.resolve(stored)
