"""One run of a handler between its waits: who holds a slot, what counts for the timeout, when it parks.

Rules.
- A run holds its slot while none of its verbs waits, and while one of its steps runs. So a parent never keeps its
  children from running, however its branches are woven; what a branch computes beside another's wait counts
  against no slot.
- The timeout counts the time in which the slot is held.
- The clock of the timeout stands still, too, while a run waits for its turn at a resource with a limit. It keeps its
  slot then, and stays in memory.
- A run parks when every verb in flight has waited `hot_s` without one of them ending, at once when all of them are
  long, and when the peer has too many that wait. A step in flight keeps it in memory, and so does a verb that has
  not come to its wait yet: nobody would wake a task for a child that was never asked for.
- A run whose step another run of the task recorded first has been overtaken, and ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NoReturn

from mesh.workflow.parking import Wait, parks_at
from mesh.workflow.slots import Slot


@dataclass(slots=True)
class Clock:
    """How much of its timeout an attempt has used, on the loop's clock."""

    limit_s: float
    used_s: float = 0.0
    runs_since: float | None = None

    def start(self, now: float) -> float:
        """Let it run; when it will be used up."""
        self.runs_since = now
        return now + self.limit_s - self.used_s

    def stop(self, now: float) -> None:
        if self.runs_since is not None:
            self.used_s += now - self.runs_since
            self.runs_since = None

    def total_s(self, now: float) -> float:
        return self.used_s + (now - self.runs_since if self.runs_since is not None else 0.0)


class Flow:
    """The waits of one run. `on_waiting` is told when it begins and ends to wait; it asks nothing.

    So is `on_stopped`, when its clock is stopped and goes on.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        timeout_s: float,
        deadline_at: float | None,
        hot_s: float,
        on_waiting: Callable[[bool], None],
        on_stopped: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slot = slot
        self._clock = Clock(timeout_s)
        self._deadline_at = deadline_at
        self._hot_s = hot_s
        self._on_waiting = on_waiting
        self._on_stopped = on_stopped
        self._stopped = 0
        self._waits: dict[Wait, None] = {}
        self._long = 0
        self._busy = 0
        self._arming = 0
        self._turn = asyncio.Lock()
        self._changed_at = 0.0
        self._alarm: asyncio.Handle | None = None
        # uvloop's handles do not tell when they ring.
        self._rings_at = 0.0
        self.scope: asyncio.Timeout | None = None
        self.parked_waits: tuple[Wait, ...] = ()
        self.is_parking = False
        self.is_overtaken = False

    def timeout(self) -> asyncio.Timeout:
        """The scope in which the handler runs."""
        self.scope = asyncio.timeout_at(self._ends_at(self._clock.start(self._loop.time())))
        return self.scope

    @property
    def held_s(self) -> float:
        """How long the slot was held so far."""
        return self._clock.total_s(self._loop.time())

    @property
    def is_past_deadline(self) -> bool:
        return self._deadline_at is not None and self._loop.time() >= self._deadline_at

    @property
    def is_waiting(self) -> bool:
        """Whether it could be parked now."""
        return bool(self._waits) and not self._busy and not self._arming and not self._is_ending

    @property
    def _is_ending(self) -> bool:
        return self.is_parking or self.is_overtaken

    @asynccontextmanager
    async def waiting(self, wait: Wait) -> AsyncIterator[None]:
        """Hold no slot while the block waits; have it again after it, unless another verb waits still.

        Raises:
            CancelledError: the run is being parked, or was overtaken.
        """
        self._check()
        self._begin(wait)
        try:
            yield
        except asyncio.CancelledError:
            self._end(wait)
            raise
        except BaseException:
            self._end(wait)
            await self._settle()
            raise
        self._end(wait)
        await self._settle()

    @contextmanager
    def arming(self) -> Iterator[None]:
        """Stay in memory while the block looks for what is on record, or sees to it that a wait can end."""
        self._check()
        self._arming += 1
        try:
            yield
        finally:
            self._arming -= 1
            self._changed()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have nothing in the block count for the timeout; the slot is kept."""
        with self.arming():
            self._stopped += 1
            if self._stopped == 1:
                self._clock.stop(self._loop.time())
                self._reschedule(None)
                self._on_stopped(True)
            try:
                yield
            finally:
                self._stopped -= 1
                # Where another branch waits without the slot, its end starts the clock.
                if not self._stopped and self._slot.is_held:
                    self._on_stopped(False)
                    self._reschedule(self._clock.start(self._loop.time()))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Hold the slot while the block runs."""
        self._check()
        self._busy += 1
        try:
            await self._settle()
            yield
        finally:
            self._busy -= 1
            self._changed()
            self._release_if_waiting()

    def park(self) -> None:
        """Have the run end, to be taken up when one of its waits is over."""
        if not self.is_waiting or self.scope is None or self.scope.expired():
            return
        self.parked_waits = tuple(self._waits)
        self.is_parking = True
        self.scope.reschedule(self._loop.time())

    async def overtaken(self) -> NoReturn:
        """Have the run end at once: another run of the same task is ahead of it."""
        self.is_overtaken = True
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(self._loop.time())
            # Only a scope that ended its task itself takes the cancellation for its own.
            while not self.scope.expired():  # noqa: ASYNC110  # no event
                await asyncio.sleep(0)
        raise asyncio.CancelledError("the task was overtaken")

    def hurry(self) -> None:
        """Park as soon as it may."""
        self._hot_s = 0.0
        self._changed()

    def close(self) -> None:
        """Forget the alarm; the run is over."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _check(self) -> None:
        if self._is_ending:
            raise asyncio.CancelledError("the run ends here")

    def _begin(self, wait: Wait) -> None:
        self._waits[wait] = None
        self._long += wait.is_long
        self._changed()
        self._release_if_waiting()

    def _end(self, wait: Wait) -> None:
        del self._waits[wait]
        self._long -= wait.is_long
        self._changed()

    def _release_if_waiting(self) -> None:
        if self._waits and not self._busy and self._slot.is_held:
            self._clock.stop(self._loop.time())
            self._reschedule(None)
            self._slot.give()
            self._on_waiting(True)

    async def _settle(self) -> None:
        """Have the slot, if it is to be held now."""
        if self._waits and not self._busy:
            return
        async with self._turn:
            if self._slot.is_held:
                return
            self._on_waiting(False)
            await self._slot.take()
            if self._stopped:
                self._on_stopped(True)
            else:
                self._reschedule(self._clock.start(self._loop.time()))
        # While it stood in line, another branch may have begun to wait.
        self._release_if_waiting()

    def _reschedule(self, runs_out_at: float | None) -> None:
        if self.scope is not None and not self.scope.expired() and not self._is_ending:
            self.scope.reschedule(self._ends_at(runs_out_at))

    def _ends_at(self, runs_out_at: float | None) -> float | None:
        ends = [at for at in (runs_out_at, self._deadline_at) if at is not None]
        return min(ends, default=None)

    def _changed(self) -> None:
        self._changed_at = self._loop.time()
        at = self._parks_at()
        if at is not None and (self._alarm is None or self._rings_at > at):
            self.close()
            self._set_alarm(at)

    def _ring(self) -> None:
        # Every change would move the alarm; it is looked at when it rings instead.
        self._alarm = None
        at = self._parks_at()
        if at is None:
            return
        if at <= self._loop.time():
            self.park()
        else:
            self._set_alarm(at)

    def _set_alarm(self, at: float) -> None:
        self._rings_at = at
        self._alarm = self._loop.call_at(at, self._ring)

    def _parks_at(self) -> float | None:
        return parks_at(
            self._waits,
            long_waits=self._long,
            is_busy=self._busy > 0 or self._arming > 0,
            changed_at=self._changed_at,
            hot_s=self._hot_s,
        )
