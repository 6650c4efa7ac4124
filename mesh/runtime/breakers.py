"""The circuit breakers of one peer: calls go through them, and what they decide goes to every other peer.

A change of state is one control record, written by compare-and-set on the last one: of two peers that decide at the
same time one is heard, and of all that want to probe one has the lease. The server's echo brings it to every peer in
the time of one message. A peer that cannot write goes on with what it decided itself.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from contracts.control import BreakerChange
from contracts.event import EventKind
from contracts.subjects import check_breaker_name, key_breaker
from mesh.bus import control
from mesh.bus.connection import Bus
from mesh.bus.records import RETRY_S
from mesh.errors import (
    BreakerOpen,
    BusUnavailable,
    Overloaded,
    PublishRejected,
    PublishUnconfirmed,
    SequenceConflict,
    TaskUnfinished,
)
from mesh.fibers import serving
from mesh.resilience import classify
from mesh.resilience.breaker import Breaker, LeaseDue, Pass, Refused, Rules, State
from mesh.runtime.controls import Controls
from mesh.telemetry.metrics import BreakerMetrics, Metrics

log = logging.getLogger("mesh.runtime")

_STATES = frozenset(str(state) for state in State)
JITTER = 0.1
"""Share of the open time over which peers spread their wish to probe."""


@dataclass(slots=True)
class _Kept:
    name: str
    breaker: Breaker
    metrics: BreakerMetrics
    sequence: int = 0
    """Of the last change that is taken in."""
    is_leasing: bool = False


@dataclass(slots=True)
class Guarded:
    """What the breakers had to do with one run of a handler."""

    failed_probe: str = ""
    """The breaker whose probe this run was, if that failed."""


class Breakers:
    """Breakers by name, each made when it is first asked for."""

    def __init__(
        self,
        bus: Bus,
        peer: str,
        controls: Controls,
        metrics: Metrics,
        rules: Mapping[str, Rules],
        *,
        tell: Callable[[EventKind, str], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._peer = peer
        self._controls = controls
        self._metrics = metrics
        self._rules = rules
        self._tell_event = tell
        self._kept: dict[str, _Kept] = {}
        self._held: dict[str, set[str]] = {}
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._fibers: asyncio.TaskGroup
        self.on_change: list[Callable[[], None]] = []
        controls.on_breaker.append(self._heard)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Tell others of changes until left."""
        try:
            async with serving() as self._fibers:
                yield
        finally:
            for alarm in self._alarms.values():
                alarm.cancel()

    # Calls.

    @asynccontextmanager
    async def guard(
        self, name: str, run: Guarded, rules: classify.Rules, *, has_timed_out: Callable[[], bool]
    ) -> AsyncIterator[None]:
        """Let the block through if the breaker does, and count what it comes to.

        What another attempt may mend is a failure of what was called, by the capability's `rules` for exceptions. A
        block that is cancelled counts as failed where its time ran out, and else tells nothing.

        Raises:
            BreakerOpen: it does not; the block was not entered.
            ContractError: the name is illegal.
        """
        kept = self._of(name)
        call = await self._admitted(kept)
        is_failure: bool | None = None
        try:
            yield
            is_failure = False
        except asyncio.CancelledError:
            is_failure = True if has_timed_out() else None
            raise
        except Exception as error:
            is_failure = _tells(error, rules)
            raise
        finally:
            self._ended(kept, call, run, is_failure=is_failure)

    async def _admitted(self, kept: _Kept) -> Pass:
        while True:
            self._take_over(kept, kept.breaker.look(time.monotonic()))
            match kept.breaker.admit(time.monotonic()):
                case Pass() as call:
                    return call
                case Refused(retry_after_s):
                    raise self._refused(kept, retry_after_s)
                case LeaseDue():
                    if not await self._lease(kept):
                        raise self._refused(kept, self._left_s(kept))

    def _ended(self, kept: _Kept, call: Pass, run: Guarded, *, is_failure: bool | None) -> None:
        if is_failure is None:
            kept.breaker.abandoned(call)
            return
        now = time.monotonic()
        kept.metrics.called(kept.breaker.how(call, now, is_failure=is_failure))
        is_current = call.era == kept.breaker.era
        changed = kept.breaker.ended(call, now, is_failure=is_failure)
        if call.is_probe and is_failure and is_current:
            run.failed_probe = kept.name
        self._take_over(kept, changed)

    def _take_over(self, kept: _Kept, changed: State | None) -> None:
        """Tell everybody of what was decided here."""
        if changed is None:
            return
        kept.metrics.changed(changed)
        for_s = max(0.0, kept.breaker.due_at - time.monotonic()) if changed is State.OPEN else 0.0
        self._fibers.create_task(self._tell(kept, kept.breaker.era, changed, for_s))
        self._changed(kept)

    def _refused(self, kept: _Kept, retry_after_s: float) -> BreakerOpen:
        kept.metrics.refused.inc()
        return BreakerOpen(
            f"breaker {kept.name!r} is open: try again in {retry_after_s:.1f} s",
            breaker=kept.name,
            retry_after_s=retry_after_s,
        )

    # Who takes work.

    def hold(self, capability: str, name: str) -> None:
        """Take no work of a capability while a breaker is open: its handler has no other way."""
        self._held.setdefault(capability, set()).add(name)
        self._notify()

    def held_by(self, capability: str) -> tuple[str, ...]:
        """The breakers for which no work of a capability is taken now, but for probes."""
        names = self._held.get(capability)
        if not names:
            return ()
        open_ = [name for name in names if self._of(name).breaker.state is not State.CLOSED]
        if not open_:
            # Its handler will say so again; it may be another one by then.
            self._held.pop(capability, None)
        return tuple(sorted(open_))

    def room(self, capability: str) -> int | None:
        """How many tasks of a capability may be asked for now; None for as many as there are slots."""
        names = self.held_by(capability)
        if not names:
            return None
        now = time.monotonic()
        return min(self._room_of(self._of(name).breaker, now) for name in names)

    def _room_of(self, breaker: Breaker, now: float) -> int:
        if now >= breaker.due_at:
            return 1
        return max(0, breaker.probes_left)

    def states(self) -> Mapping[str, State]:
        """The breakers that this peer uses."""
        return {name: kept.breaker.state for name, kept in self._kept.items()}

    # What others decide.

    def _heard(self, name: str) -> None:
        kept = self._kept.get(name)
        if kept is not None:
            self._take_in(kept)

    def _take_in(self, kept: _Kept) -> None:
        """Go by the last change, if another peer made it."""
        sequence = self._controls.sequence(key_breaker(kept.name))
        if sequence <= kept.sequence:
            return
        kept.sequence = sequence
        heard = self._controls.breaker(kept.name)
        if heard is not None and heard.change.by == self._peer:
            # Heard before the server's answer; what was decided here is in force already.
            return
        try:
            state = State.CLOSED if heard is None else State(heard.change.state)
        except ValueError:
            return
        left_s = 0.0 if heard is None else heard.left_s
        kept.breaker.heard(state, time.monotonic() + left_s)
        self._changed(kept)

    # What is decided here.

    async def _tell(self, kept: _Kept, era: int, state: State, for_s: float) -> None:
        kind = EventKind.BREAKER_OPENED if state is State.OPEN else EventKind.BREAKER_CLOSED
        log.warning("breaker %r is %s", kept.name, state)
        began = time.monotonic()
        while kept.breaker.era == era:
            left_s = max(0.0, for_s - (time.monotonic() - began))
            change = BreakerChange(state=state, at=time.time(), for_s=left_s, by=self._peer)
            try:
                kept.sequence = await control.change_breaker(self._bus, kept.name, change, after=kept.sequence)
            except SequenceConflict:
                if await self._has_lost(kept, state):
                    return
            except (BusUnavailable, PublishUnconfirmed):
                await self._bus.until_connected()
                await asyncio.sleep(RETRY_S)
            except PublishRejected as error:
                log.error("breaker %r: the others are not told that it is %s: %s", kept.name, state, error)
                return
            else:
                await self._tell_event(kind, kept.name)
                return

    async def _has_lost(self, kept: _Kept, state: State) -> bool:
        """Whether another peer's change goes before this one. An opening that meets a closing does not lose."""
        sequence, change = await control.breaker(self._bus, kept.name)
        if not sequence:
            # A replica that lags.
            await asyncio.sleep(RETRY_S)
            return False
        is_void = change is None or change.state not in _STATES or change.by == self._peer
        if change is None or is_void or (state is State.OPEN and change.state == State.CLOSED):
            # Its own is one whose answer was lost; what nobody can read holds nobody.
            kept.sequence = max(kept.sequence, sequence)
            return False
        if sequence > kept.sequence:
            kept.sequence = sequence
            kept.breaker.heard(State(change.state), time.monotonic() + change.for_s)
            self._changed(kept)
        return True

    async def _lease(self, kept: _Kept) -> bool:
        """Whether this peer has the lease now; at most one fiber asks for it."""
        if kept.is_leasing:
            return False
        kept.is_leasing = True
        lease_s, era = kept.breaker.rules.lease_s, kept.breaker.era
        change = BreakerChange(state=State.HALF_OPEN, at=time.time(), for_s=lease_s, by=self._peer)
        try:
            kept.sequence = await control.change_breaker(self._bus, kept.name, change, after=kept.sequence)
        except SequenceConflict:
            await self._has_lost(kept, State.HALF_OPEN)
            return False
        except (BusUnavailable, PublishUnconfirmed, PublishRejected):
            log.warning("breaker %r: cut off from the others, this peer probes by itself", kept.name)
        finally:
            kept.is_leasing = False
        if kept.breaker.era != era:
            # Somebody decided otherwise while this was under way.
            return True
        kept.breaker.leased(time.monotonic() + lease_s)
        kept.metrics.changed(State.HALF_OPEN)
        self._changed(kept)
        return True

    # Inside.

    def _of(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None:
            check_breaker_name(name)
            kept = _Kept(name, Breaker(self._rules.get(name)), self._metrics.breaker(name))
            self._kept[name] = kept
            self._take_in(kept)
        return kept

    def _left_s(self, kept: _Kept) -> float:
        match kept.breaker.admit(time.monotonic()):
            case Refused(retry_after_s):
                return retry_after_s
            case Pass() as call:
                kept.breaker.abandoned(call)
        return JITTER * kept.breaker.rules.open_s

    def _changed(self, kept: _Kept) -> None:
        if (alarm := self._alarms.pop(kept.name, None)) is not None:
            alarm.cancel()
        breaker = kept.breaker
        if breaker.state is not State.CLOSED:
            # Spread, so that of many peers that want to probe the first one's lease is heard by the others.
            later_s = random.uniform(0.0, JITTER * breaker.rules.open_s)  # noqa: S311  # no secret
            wait_s = max(0.0, breaker.due_at - time.monotonic()) + later_s
            self._alarms[kept.name] = asyncio.get_running_loop().call_later(wait_s, self._notify)
        self._notify()

    def _notify(self) -> None:
        for callback in self.on_change:
            callback()


def _tells(error: Exception, rules: classify.Rules) -> bool | None:
    """Whether an exception speaks of a failure of what was called; None where it says nothing of it."""
    if isinstance(error, ExceptionGroup):
        told = [_tells(inner, rules) for inner in error.exceptions]
        return True if True in told else (None if None in told else False)
    if isinstance(error, (BreakerOpen, Overloaded)):
        return None
    if isinstance(error, TaskUnfinished):
        return True
    meaning = classify.classify(error, rules, now=time.time())
    # What cannot succeed was answered, and who says when to come back is well.
    return None if meaning.is_throttled else not meaning.is_final
