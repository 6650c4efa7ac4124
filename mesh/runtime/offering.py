"""What one capability has on offer: its free slots, lane by lane, each at the peer's bid."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from functools import partial

from mesh.bus import topology
from mesh.bus.pull import EXPIRES_S, Delivery, Pull
from mesh.fibers import serving
from mesh.runtime.host import Host
from mesh.scheduling import bids
from mesh.scheduling.bids import BEST, Offer
from mesh.scheduling.credit import SHORT_S, ahead, asks, slots_to_offer
from mesh.scheduling.lanes import EMPTY_AFTER_S, NORMAL, ORDER, URGENT, Known, Lanes, Step
from mesh.scheduling.service import ServiceTimes
from mesh.workflow.slots import Slots

BID_AGAIN_S = 0.1
"""How long a bid stands before it is worked out anew."""
DISTRUST_S = 6.0
"""How long the fleet is not relied on after it let a task wait for too long."""
LOOK_WITHIN_S = 0.1
"""How long a task is held while it is not known whether a more urgent one is about to arrive."""
PASSED_OVER_S = 0.25
"""Shortest life of an offer that is passed over."""
TRIAL_S = 0.25
"""How long a task that may probe has, before another one is asked for."""


class Idle(StrEnum):
    """Why a slot is idle."""

    NO_WORK = "no work"
    PASSED_OVER = "passed over"
    UNOFFERED = "not offered"
    PAUSED = "paused"
    BREAKER = "breaker open"
    CLOSED = "draining"
    AWAY = "not connected"


class Offering:
    """Keeps the free slots of one capability on offer, from `open` until it is left or stopped.

    `on_delivery` takes each message, a less urgent one up to `LOOK_WITHIN_S` later. `on_lost` hears that a consumer was
    lost.
    """

    def __init__(
        self,
        host: Host,
        capability: str,
        slots: Slots,
        service: ServiceTimes,
        *,
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._host = host
        self._capability = capability
        self._slots = slots
        self._service = service
        self._on_delivery = on_delivery
        self._lanes = Lanes()
        self._is_open = False
        self._wanted = asyncio.Event()
        self._bid = BEST
        self._fleet_slots = slots.count
        self._bid_until = 0.0
        self._probe_at = 0.0
        self._distrusted_until = 0.0
        self._trial_at = 0.0
        self.waited_s = 0.0
        """How long the slot that was served last had been on offer."""
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._looked: asyncio.TimerHandle | None = None
        self._held: list[Delivery] = []

        def pull(lane: str, arrived: Callable[[Delivery], None]) -> Pull:
            return Pull(
                host.bus,
                topology.consumer(host.settings, capability, lane),
                on_delivery=arrived,
                on_room=self._wanted.set,
                on_empty=partial(self._found_nothing, lane),
                on_lost=on_lost,
            )

        self._pulls = {lane: pull(lane, partial(self._arrived, lane)) for lane in ORDER}
        self._ahead = pull(NORMAL, partial(self._arrived, NORMAL))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Offer until left or stopped."""
        changes = (self._host.controls.on_change, self._host.breakers.on_change)
        for heard in changes:
            heard.append(self._wanted.set)
        try:
            async with AsyncExitStack() as stack:
                for pull in self._every:
                    await stack.enter_async_context(pull.open())
                await stack.enter_async_context(serving(self._keep()))
                self._is_open = True
                self._wanted.set()
                yield
        finally:
            self._is_open = False
            for heard in changes:
                heard.remove(self._wanted.set)
            for alarm in self._alarms.values():
                alarm.cancel()
            self._release()

    async def stop(self) -> None:
        """Take the offers back, for good."""
        self._is_open = False
        self._release()
        await self._withdraw()

    def look_again(self) -> None:
        """Offer what can be offered now."""
        self._wanted.set()

    @property
    def offered(self) -> Mapping[str, int]:
        """Slots on offer, by lane."""
        return {lane: pull.offered for lane, pull in self._pulls.items()}

    @property
    def bid(self) -> int:
        """How many tasks must wait before this peer takes one more."""
        now = time.monotonic()
        if now >= self._bid_until:
            self._bid_until = now + BID_AGAIN_S
            self._bid = self._worked_out(now)
        return self._bid

    @property
    def delay_s(self) -> float:
        """In how many seconds a slot here serves one more task; 0 while nothing is known."""
        mean_s = self._service.every.mean_s
        if not mean_s:
            return 0.0
        standing = max(0, self._slots.in_use - self._slots.count)
        return bids.delay_s(mean_s, slots=self._slots.count, standing=standing, lag_s=self._host.lag.late_s)

    def idle(self) -> Mapping[Idle, int]:
        """The free slots, by why they are idle."""
        free = max(0, self._slots.count - self._slots.in_use)
        offered = min(free, self._pulls[NORMAL].offered)
        if not self._is_open:
            why = Idle.CLOSED
        elif not self._host.bus.is_connected:
            why = Idle.AWAY
        elif self._host.controls.is_paused(self._capability):
            why = Idle.PAUSED
        elif self._host.breakers.held_by(self._capability):
            why = Idle.BREAKER
        else:
            taking = Idle.NO_WORK if self.bid == BEST else Idle.PASSED_OVER
            return {**dict.fromkeys(Idle, 0), taking: offered, Idle.UNOFFERED: free - offered}
        return {**dict.fromkeys(Idle, 0), why: free}

    def observe(self, run_s: float, class_: str) -> None:
        """Count a task that was done here."""
        is_sign = self._bid > BEST and bids.is_at_pace(run_s, self._own, self._host.offers_of(self._capability))
        if is_sign or run_s < self._service.every.mean_s / bids.ALIKE:
            # It may have become fast: another one tells more.
            self._probe_at = 0.0
        self._service.observe(run_s, class_, is_sign=is_sign)

    @property
    def _own(self) -> Offer:
        return Offer(self._slots.count, self.delay_s, self._service.means_s())

    @property
    def _every(self) -> tuple[Pull, ...]:
        return (*self._pulls.values(), self._ahead)

    def _worked_out(self, now: float) -> int:
        others = list(self._host.offers_of(self._capability))
        self._fleet_slots = self._slots.count + sum(offer.slots for offer in others)
        if not self._host.settings.bids or not self._service.every.seen or now < self._distrusted_until:
            return BEST
        return bids.bid(self._own, others)

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not self._is_open:
                continue
            room = self._host.breakers.room(self._capability)
            if room == 0 or self._host.controls.is_paused(self._capability):
                await self._withdraw()
                continue
            for pull in self._every:
                await pull.resume()
            free = self._slots.count - self._slots.in_use
            mean_s = self._service.every.mean_s
            if free <= 0 and not 0 < mean_s <= SHORT_S:
                # What comes now would wait here for a slot, while another peer may have one first.
                self._lanes.are_full()
                await self._withdraw()
                continue
            if room is None:
                for step in self._lanes.plan(free, self.offered):
                    await self._offer(step)
                await self._fetch_ahead(mean_s)
            elif time.monotonic() >= self._trial_at:
                for step in self._lanes.plan(min(free, room), self.offered):
                    await self._offer(step)

    async def _offer(self, step: Step) -> None:
        pull = self._pulls[step.lane]
        if step.is_look:
            if step.lane == URGENT and self._looked is None:
                self._looked = asyncio.get_running_loop().call_later(LOOK_WITHIN_S, self._release)
            await pull.take()
            return
        now, bid = time.monotonic(), self.bid
        probes = bid > BEST and now >= self._probe_at
        if probes:
            self._probe_at = now + bids.probe_after_s(self.delay_s)
        elif not slots_to_offer(self._slots.count, self._slots.in_use, pull.offered):
            return
        for ask in asks(step.slots, bid, probes=probes):
            for_s = EXPIRES_S if ask.bid == BEST else max(PASSED_OVER_S, self._probe_at - now)
            await pull.offer(ask.slots, ask.bid, for_s=min(EXPIRES_S, for_s))
        if self._lanes.known(step.lane) is not Known.EMPTY and step.lane not in self._alarms:
            loop = asyncio.get_running_loop()
            self._alarms[step.lane] = loop.call_later(EMPTY_AFTER_S, self._waited, step.lane, pull.served)

    async def _fetch_ahead(self, mean_s: float) -> None:
        ask = ahead(self._slots.count, mean_s, self._fleet_slots)
        if ask is None or not self._host.settings.bids:
            return
        standing = max(0, self._slots.in_use - self._slots.count)
        room = ask.slots - standing - self._ahead.offered
        if 2 * room >= ask.slots:
            await self._ahead.offer(room, ask.bid)

    async def _withdraw(self) -> None:
        for pull in self._every:
            if pull.offered:
                await pull.withdraw()

    def _arrived(self, lane: str, delivery: Delivery) -> None:
        self._lanes.arrived(lane, pending=delivery.pending)
        self.waited_s = self._pulls[lane].waited_s
        if self._host.breakers.room(self._capability) is not None:
            self._trial_at = time.monotonic() + TRIAL_S
            asyncio.get_running_loop().call_later(TRIAL_S, self._wanted.set)
        is_new = lane == NORMAL and delivery.delivered == 1
        if self._bid > BEST and is_new and time.time() - delivery.stored_at > self.delay_s:
            # It would have been done here by now: faster peers are fewer than their beats say.
            self._distrusted_until = time.monotonic() + DISTRUST_S
            self._bid_until = 0.0
        if lane != URGENT and self._looked is not None:
            # Both were asked for at once: the one that is looked for goes first, if it is there.
            self._held.append(delivery)
            return
        self._on_delivery(delivery)
        if lane == URGENT:
            self._release()
        self._wanted.set()

    def _release(self) -> None:
        if self._looked is not None:
            self._looked.cancel()
            self._looked = None
        held, self._held = self._held, []
        for delivery in held:
            self._on_delivery(delivery)
        self._wanted.set()

    def _found_nothing(self, lane: str) -> None:
        self._lanes.is_empty(lane)
        if lane == URGENT:
            self._release()
        self._wanted.set()

    def _waited(self, lane: str, served: int) -> None:
        del self._alarms[lane]
        pull = self._pulls[lane]
        if pull.offered and pull.served == served:
            self._found_nothing(lane)
        elif pull.offered and self._lanes.known(lane) is not Known.EMPTY:
            loop = asyncio.get_running_loop()
            self._alarms[lane] = loop.call_later(EMPTY_AFTER_S, self._waited, lane, pull.served)
