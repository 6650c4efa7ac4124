"""Turns at what the whole mesh shares: one fiber a resource and kind asks for everybody in this process.

Rules.
- A seat comes before a turn: who has a turn and no seat would start late, beside others.
- What a peer holds is on record before a caller has it, and off it after the caller gave it back. So what is on record
  is never less than what is held, whoever dies when.
- A record says what this peer holds, not what it takes more. So repeating a write that may have happened is safe.
- A booked turn that nobody learns of is lost, never given twice.
- Waiters are served in their order here. Between peers seats are shared evenly, and turns come in the order of booking.
"""

import asyncio
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import msgspec

from contracts import wire
from contracts.errors import ContractError, MeshError
from contracts.limit import Bucket, Holding, Limit, Rate, Seats, check_limit
from contracts.subjects import LimitKind, check_resource
from mesh.bus.connection import Bus
from mesh.bus.limits import Cell, ServerClock
from mesh.bus.records import RETRY_S, Stored
from mesh.errors import BusError, BusUnavailable, Overloaded, Permanent, PublishUnconfirmed
from mesh.fibers import serving
from mesh.limits import Grant, check_ask, check_fits, no_seat, price_of, too_late
from mesh.resilience import rate
from mesh.resilience.seats import alive, allotted
from mesh.telemetry.metrics import LimitMetrics

log = logging.getLogger("mesh.limits")

T = TypeVar("T")

RENEW_AT: Final = 0.3
"""The share of its lease after which a holder renews what it holds."""
LOOK_AGAIN_S: Final = 2.0
"""How long an echo may be lost before a waiter looks for itself."""
ANSWER_S: Final = 2.0
"""How much longer than it would wait for its turn a caller waits for the server's answer."""
REFUSED_AGAIN_S: Final = 1.0
FOREVER_S: Final = 30 * 86_400.0
CONTENDED_S: Final = 0.0005
CORRECTIONS_MAX: Final = 10_000
FAREWELL_S: Final = 1.0


class Limiter:
    """The limits of one peer. `operator` tells what was set for a resource, `declared` what the code says otherwise."""

    def __init__(
        self,
        bus: Bus,
        peer: str,
        metrics: LimitMetrics,
        *,
        operator: Callable[[str], Limit | None],
        declared: Mapping[str, Limit],
    ) -> None:
        self._bus = bus
        self._peer = peer
        self._metrics = metrics
        self._operator = operator
        self._declared = {check_resource(resource): check_limit(limit) for resource, limit in declared.items()}
        self._clock = ServerClock(bus)
        self._seats: dict[str, _Seats] = {}
        self._rates: dict[str, _Turns] = {}
        self._fibers: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve until left; then what is held here is given back."""
        off = self._bus.on_reconnect(self._clock.reconnected)
        async with serving() as self._fibers:
            try:
                yield
            finally:
                off()
                with suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_S if self._bus.is_connected else 0):
                        for desk in self._desks():
                            await desk.idle.wait()
                self._fibers = None

    def limit_of(self, resource: str) -> Limit | None:
        """The limit that stands for a resource now; what an operator set wins."""
        return self._operator(resource) or self._declared.get(resource)

    def stir(self) -> None:
        """Look at every limit again: one may have changed."""
        for desk in self._desks():
            desk.stir()

    @asynccontextmanager
    async def hold(self, resource: str, *, tokens: int, within_s: float) -> AsyncIterator[Grant]:
        """Have a turn, and a seat while the block runs; see `Context.limit`."""
        check_ask(resource, tokens, within_s)
        limit = self.limit_of(resource)
        if limit is None:
            self._metrics.unlimited()
            yield Grant(resource, tokens, 0.0, correct=lambda _: None)
            return
        check_fits(resource, limit, tokens)
        began = time.monotonic()
        seats: _Seats | None = None
        turns = self._desk(self._rates, resource, _Turns) if limit.has_rate else None
        correct: Callable[[int], None] = lambda _: None  # noqa: E731  # replaced below
        try:
            if turns is not None:
                turns.check_hopeless(limit, tokens, within_s)
            if limit.concurrent is not None:
                seats = self._desk(self._seats, resource, _Seats)
                await seats.take(began + within_s, within_s)
            try:
                if turns is not None:
                    correct = await turns.book(tokens, began + within_s, within_s)
            except BaseException:
                if seats is not None:
                    seats.give()
                raise
        except Overloaded:
            self._metrics.refused(resource)
            raise
        waited_s = time.monotonic() - began
        self._metrics.granted(resource, waited_s)
        try:
            yield Grant(resource, tokens, waited_s, correct=correct)
        finally:
            if seats is not None:
                seats.give()

    def _desks(self) -> "list[_Desk[Any]]":
        return [*self._seats.values(), *self._rates.values()]

    def _desk(self, desks: "dict[str, D]", resource: str, kind: "type[D]") -> "D":
        desk = desks.get(resource)
        if desk is None:
            if self._fibers is None:
                raise BusUnavailable(f"{resource}: this peer is leaving")
            desk = desks[resource] = kind(self._bus, self._clock, self._peer, resource, lambda: self.limit_of(resource))
            self._fibers.create_task(desk.run())
        return desk


@dataclass(eq=False, slots=True)
class _Waiter(Generic[T]):
    """Somebody who waits for a seat or a turn until the monotonic time `give_up_at`."""

    give_up_at: float
    within_s: float
    tokens: int = 0
    answer: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def refuse(self, error: MeshError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Desk(ABC, Generic[T]):
    """A fiber that changes one record for all who wait for it in this process."""

    kind: LimitKind

    def __init__(
        self, bus: Bus, clock: ServerClock, peer: str, resource: str, limit: Callable[[], Limit | None]
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._peer = peer
        self._resource = resource
        self._limit = limit
        self._cell = Cell(bus, clock, self.kind, resource, on_change=self.stir)
        self._waiters: list[_Waiter[T]] = []
        self._stirred = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def stir(self) -> None:
        self.idle.clear()
        self._stirred.set()

    async def run(self) -> None:
        async with self._cell.listening():
            while True:
                await self._until_stirred()
                self._stirred.clear()
                try:
                    await self._serve()
                except (BusUnavailable, PublishUnconfirmed):
                    self._cell.forget()
                    await self._bus.until_connected()
                    await asyncio.sleep(_jittered(RETRY_S))
                    self.stir()
                except (BusError, ContractError) as error:
                    # A full stream, rights taken away, or a newer format: nothing may be given out.
                    log.error("limit %s: %s", self._resource, error)
                    for waiter in self._waiting():
                        told = f"{self._resource}: {error}"
                        waiter.refuse(Overloaded(told, retry_after_s=_jittered(1.5 * REFUSED_AGAIN_S)))
                    self._cell.forget()
                    await asyncio.sleep(REFUSED_AGAIN_S)
                    self.stir()
                else:
                    if self._is_idle() and not self._stirred.is_set():
                        self.idle.set()

    async def _until_stirred(self) -> None:
        looks_at = self._looks_at()
        if looks_at is None:
            await self._stirred.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, looks_at - time.monotonic())):
                await self._stirred.wait()
        except TimeoutError:
            if self._waiters:
                # An echo may have been lost.
                self._cell.forget()

    async def _wait(self, waiter: _Waiter[T], refusal: Callable[[], Overloaded]) -> T:
        """The answer to a waiter, who leaves when it is there, refused, or too late."""
        self._waiters.append(waiter)
        self.stir()
        left_s = waiter.give_up_at + ANSWER_S - time.monotonic()
        limit_s = left_s if left_s < FOREVER_S else None
        try:
            async with asyncio.timeout(limit_s):
                return await waiter.answer
        except BaseException as error:
            answer = waiter.answer
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                # It came with the cancellation.
                self._return(answer.result())
            if isinstance(error, TimeoutError):
                raise refusal() from None
            raise
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)
            self.stir()

    def _waiting(self) -> list[_Waiter[T]]:
        """Those who wait still, in their order."""
        self._waiters = [waiter for waiter in self._waiters if not waiter.answer.done()]
        return self._waiters.copy()

    async def _contended(self) -> None:
        await asyncio.sleep(_jittered(CONTENDED_S))

    @abstractmethod
    async def _serve(self) -> None:
        """Give turns to those who wait, as far as the record lets."""

    @abstractmethod
    def _looks_at(self) -> float | None:
        """When to serve again without being stirred, on the loop's clock; None for never."""

    @abstractmethod
    def _is_idle(self) -> bool:
        """Whether there is nothing to do until somebody comes."""

    @abstractmethod
    def _return(self, taken: T) -> None:
        """Take back what came too late for the one who waited."""


D = TypeVar("D", bound=_Desk[Any])


class _Seats(_Desk[None]):
    """The seats of one resource that this process holds. Each is on record before it is given out."""

    kind = "seats"

    def __init__(
        self, bus: Bus, clock: ServerClock, peer: str, resource: str, limit: Callable[[], Limit | None]
    ) -> None:
        super().__init__(bus, clock, peer, resource, limit)
        self._held = 0
        self._since = 0.0
        self._renew_at = math.inf
        self._is_on_record = False
        self._lease_s = bus.settings.limit_lease_s
        self._renew_s = self._lease_s * RENEW_AT

    async def take(self, give_up_at: float, within_s: float) -> None:
        """Hold one more seat, until `give`.

        Raises:
            Overloaded: none was free in time.
        """
        await self._wait(_Waiter(give_up_at, within_s), lambda: no_seat(self._resource, within_s))

    def give(self) -> None:
        self._held -= 1
        self.stir()

    def _return(self, taken: None) -> None:
        self.give()

    async def _serve(self) -> None:
        while True:
            limit, waiting = self._limit(), self._waiting()
            if limit is None or limit.concurrent is None:
                self._renew_at, self._is_on_record = math.inf, False
                self._grant(waiting)
                return
            if not (waiting or self._held or self._is_on_record):
                return
            stored = await self._cell.current()
            waiting = self._waiting()
            now = _now(self._clock, stored)
            # A broker that was away kept everybody from renewing: whoever has just come back takes nobody for dead.
            is_settled = self._clock.connected_s >= self._lease_s
            others = alive(_seats(stored).holdings, now if is_settled else 0.0)
            mine = others.pop(self._peer, None)
            since = self._since or now
            asked = Holding(seats=self._held, wants=len(waiting), since=since)
            more = allotted({**others, self._peer: asked}, self._peer, limit.concurrent)
            if late := [waiter for waiter in waiting[more:] if waiter.give_up_at <= time.monotonic()]:
                for waiter in late:
                    waiter.refuse(no_seat(self._resource, waiter.within_s))
                continue
            seats, wants = self._held + more, len(waiting) - more
            since = now if more else since
            if mine is None and not seats and not wants:
                self._is_on_record, self._since = False, 0.0
                return
            if mine is not None and _says(mine, seats, wants) and mine.until - now > self._lease_s - self._renew_s:
                self._since = since if wants else 0.0
                self._renew_at = time.monotonic() + mine.until - now - (self._lease_s - self._renew_s)
                self._grant(waiting[:more])
                return
            if seats or wants:
                others[self._peer] = Holding(seats=seats, wants=wants, since=since, until=now + self._lease_s)
            data = wire.encode(Seats(holdings=others, limit=limit))
            if await self._cell.swap(stored, data, matters_s=self._lease_s):
                self._since = since if wants else 0.0
                self._renew_at = time.monotonic() + self._renew_s
                self._is_on_record = bool(seats or wants)
                self._grant(waiting[:more])
                return
            await self._contended()

    def _grant(self, waiting: "list[_Waiter[None]]") -> None:
        for waiter in waiting:
            if waiter.answer.done():
                # It left while its seat was being taken.
                self.stir()
            else:
                self._held += 1
                waiter.answer.set_result(None)

    def _looks_at(self) -> float | None:
        if not self._waiters:
            return self._renew_at if self._held or self._is_on_record else None
        now = time.monotonic()
        wakes = [self._renew_at, now + _jittered(LOOK_AGAIN_S)]
        wakes += [waiter.give_up_at for waiter in self._waiters]
        stored, at_server = self._cell.known, self._clock.now()
        if stored is not None:
            with suppress(ContractError):
                lapses = (holding.until - at_server for holding in _seats(stored).holdings.values())
                wakes += [now + lapse for lapse in lapses if lapse > 0]
        return min(wakes)

    def _is_idle(self) -> bool:
        return not (self._waiters or self._held or self._is_on_record)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn that comes at the monotonic time `starts_at`; without a booking where there is no limit any more."""

    booking: rate.Booking | None
    price: rate.Price
    tokens: int
    starts_at: float


class _Turns(_Desk[_Turn]):
    """The turns at one resource that this process books."""

    kind = "rate"

    def __init__(
        self, bus: Bus, clock: ServerClock, peer: str, resource: str, limit: Callable[[], Limit | None]
    ) -> None:
        super().__init__(bus, clock, peer, resource, limit)
        self._corrections: deque[rate.Correction] = deque(maxlen=CORRECTIONS_MAX)

    def check_hopeless(self, limit: Limit, tokens: int, within_s: float) -> None:
        """Nothing, unless the turn is known to come too late.

        Raises:
            Overloaded: it is.
        """
        stored = self._cell.known
        if stored is None:
            return
        now = _now(self._clock, stored)
        turn = rate.turn_of(_level(stored), price_of(limit), tokens, now=now)
        if turn - now > within_s:
            raise too_late(self._resource, turn - now, within_s)

    async def book(self, tokens: int, give_up_at: float, within_s: float) -> Callable[[int], None]:
        """Return when the turn comes, with what corrects the tokens booked. Cancelled, the turn is given back.

        Raises:
            Overloaded: it would come too late; nothing was booked.
        """
        waiter: _Waiter[_Turn] = _Waiter(give_up_at, within_s, tokens)
        turn = await self._wait(
            waiter,
            lambda: Overloaded(
                f"{self._resource}: no answer of the server within {within_s:g} s", retry_after_s=REFUSED_AGAIN_S
            ),
        )
        try:
            while (wait_s := turn.starts_at - time.monotonic()) > 0:  # noqa: ASYNC110  # no event, but a time
                await asyncio.sleep(wait_s)
        except BaseException:
            self._return(turn)
            raise
        return lambda unused: self._correct(turn, 0, unused)

    def _return(self, taken: _Turn) -> None:
        self._correct(taken, 1, taken.tokens)

    def _correct(self, turn: _Turn, requests: int, tokens: int) -> None:
        if turn.booking is not None:
            # An operator may have changed the price since; what is given back is what was taken.
            requests_s, tokens_s = requests * turn.price.request_s, tokens * turn.price.token_s
            self._corrections.append(rate.Correction(turn.booking, requests_s, tokens_s))
            self.stir()

    async def _serve(self) -> None:
        while True:
            limit, waiting = self._limit(), self._waiting()
            if limit is None or not limit.has_rate:
                self._corrections.clear()
                for waiter in waiting:
                    waiter.answer.set_result(_Turn(None, rate.Price(), waiter.tokens, time.monotonic()))
                return
            for waiter in waiting:
                try:
                    check_fits(self._resource, limit, waiter.tokens)
                except Permanent as never:
                    waiter.refuse(never)
            if not self._waiting() and not self._corrections:
                return
            stored = await self._cell.current()
            corrections = list(self._corrections)
            price = price_of(limit)
            plan = self._plan(stored, price, corrections)
            if not plan.booked and not corrections:
                return
            data = wire.encode(msgspec.structs.replace(plan.record, limit=limit))
            if await self._cell.swap(stored, data, matters_s=plan.matters_s):
                for _ in corrections:
                    self._corrections.popleft()
                self._answer(plan.booked, price)
                return
            await self._contended()

    def _plan(self, stored: Stored | None, price: rate.Price, corrections: list[rate.Correction]) -> "_Plan":
        now, here = _now(self._clock, stored), time.monotonic()
        level = _level(stored)
        for correction in corrections:
            level = rate.correct(level, correction)
        waiting = self._waiting()
        asks = [rate.Ask(waiter.tokens, max(now, now + waiter.give_up_at - here)) for waiter in waiting]
        level, answers = rate.book(level, price, asks, now=now)
        booked: list[tuple[_Waiter[_Turn], rate.Booking]] = []
        for waiter, answer in zip(waiting, answers, strict=True):
            if isinstance(answer, rate.TooLate):
                waiter.refuse(too_late(self._resource, answer.turn - now, waiter.within_s))
            else:
                booked.append((waiter, answer))
        # A turn that is booked for now begins when it is stored, which is later.
        requests_s = len(booked) * price.request_s
        tokens_s = sum(waiter.tokens for waiter, _ in booked) * price.token_s
        record = Rate(
            requests=Bucket(until=level.requests.until, fresh=requests_s, booked=level.requests.booked),
            tokens=Bucket(until=level.tokens.until, fresh=tokens_s, booked=level.tokens.booked),
            turn=level.turn,
        )
        ends_at = max(level.turn, level.requests.until, level.tokens.until)
        return _Plan(record, booked, matters_s=max(0.0, ends_at - now) + requests_s + tokens_s)

    def _answer(self, booked: "list[tuple[_Waiter[_Turn], rate.Booking]]", price: rate.Price) -> None:
        here, now = time.monotonic(), self._clock.now()
        for waiter, booking in booked:
            turn = _Turn(booking, price, waiter.tokens, here + booking.turn - now)
            if waiter.answer.done():
                # It left while its turn was being booked.
                self._return(turn)
            else:
                waiter.answer.set_result(turn)

    def _looks_at(self) -> float | None:
        return None

    def _is_idle(self) -> bool:
        return not (self._waiters or self._corrections)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be stored, and who has a turn when it is."""

    record: Rate
    booked: list[tuple[_Waiter[_Turn], rate.Booking]]
    matters_s: float
    """How long until nothing of it counts any more."""


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.5)  # noqa: S311  # spreads peers out


def _now(clock: ServerClock, stored: Stored | None) -> float:
    """The earliest that the server's clock can stand at, after a record was stored."""
    return max(clock.now(), stored.stored_at if stored is not None else 0.0)


def _seats(stored: Stored | None) -> Seats:
    return Seats() if stored is None else wire.decode(Seats, stored.data)


def _says(holding: Holding, seats: int, wants: int) -> bool:
    """Whether what stands on record will do. More wishes than it says matter only when there are seats to share."""
    return holding.seats == seats and (holding.wants == wants or 0 < holding.wants < wants)


def _level(stored: Stored | None) -> rate.Level:
    if stored is None:
        return rate.Level()
    record = wire.decode(Rate, stored.data)
    return level_at(record, stored.stored_at)


def level_at(record: Rate, stored_at: float) -> rate.Level:
    """The level that a record tells, stored when it was."""
    requests, tokens = record.requests, record.tokens
    return rate.Level(
        rate.Filling(max(requests.until, stored_at + requests.fresh), requests.booked),
        rate.Filling(max(tokens.until, stored_at + tokens.fresh), tokens.booked),
        record.turn,
    )
