"""Pull requests on an overflow consumer: each offers free slots at a bid, the server matches.

Rules.
- A bid is how many tasks must wait (`min_pending`) before the server serves the pull; see `mesh.scheduling.bids`.
- A pull's deliveries arrive with the stream's subject, not the inbox's, so an inbox cannot say which pull was
  served; all pulls share one inbox and only the number of slots still offered is kept. A 408 names how many of
  its pull were left, a 404 ends a pull that does not wait.
- The inbox is replaced, which cancels every pull on it, whenever the account may be wrong: a 409 (leadership
  change, consumer deleted, too many waiting), no responders, a reconnection, or silence past two heartbeats.
- Across accounts the server takes a message with neither body nor headers, such as a raw publisher may send, for the
  end of the answer, and what else that pull is served is lost until `ack_wait` (measured on 2.15.1). Whoever got one
  replaces the inbox, and asks for one message a pull for some time: then nothing else is lost.
- A delivery in flight to a replaced inbox is not lost: it comes again after `ack_wait`.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers as names
from mesh.bus.connection import Bus, Headers
from mesh.bus.topology import NANOS, PRIORITY_GROUP, Spec
from mesh.errors import BusUnavailable
from mesh.fibers import serving
from mesh.scheduling.bids import BEST

log = logging.getLogger("mesh.bus")

EXPIRES_S = 30.0
IDLE_HEARTBEAT_S = 5.0
SILENT_AFTER_S = 2 * IDLE_HEARTBEAT_S + 1
RENEW_AFTER_S = 0.25
DRAIN_WITHIN_S = 3.0
SINGLY_S = 60.0

NO_MESSAGES = "404"
_ENDED = (NO_MESSAGES, "408")

_NO_HEADERS: Headers = {}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One hand-over of a message. `delivered` counts hand-overs, `pending` what waits behind it."""

    subject: str
    payload: bytes
    headers: Headers
    reply: str
    sequence: int
    delivered: int
    stored_at: float
    pending: int


class Pull:
    """The pulls of one peer on one consumer.

    `on_delivery` takes each message at once, without awaiting. `on_room` is called when offered slots came
    back unused, or nothing is known of them any more, and slots should be offered again; `on_empty` when `take`
    found nothing. `on_lost` is called when the consumer was lost: deleted, moved to another leader, or not answering.
    """

    def __init__(
        self,
        bus: Bus,
        consumer: Spec,
        *,
        on_delivery: Callable[[Delivery], None],
        on_room: Callable[[], None],
        on_empty: Callable[[], None] | None = None,
        on_lost: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
        self._on_delivery = on_delivery
        self._on_room = on_room
        self._on_empty = on_empty or on_room
        self._on_lost = on_lost
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._heard_at = 0.0
        self._singly_until = 0.0
        self._renew = asyncio.Event()
        # Replacing takes a round trip; two replacements at once would leave an inbox with pulls nobody counts.
        self._inbox_lock = asyncio.Lock()
        self.offered = 0
        # When slots were offered, and how many; the oldest is taken for the one that is served.
        self._since: deque[list[float]] = deque()
        self.waited_s = 0.0
        """How long the slot that was served last had been on offer."""
        self.served = 0
        """Messages handed over so far."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep an inbox in good order until left."""
        await self._replace_inbox()
        off = self._bus.on_reconnect(self._renew.set)
        try:
            async with serving(self._watch()):
                yield
        finally:
            off()
            await self.withdraw()

    async def offer(self, slots: int, bid: int = BEST, *, for_s: float = EXPIRES_S) -> None:
        """Offer free slots to the server, each to be served while at least `bid` messages wait.

        The offer ends after `for_s` seconds.
        """
        passed_over = b',"min_pending":%d' % bid if bid > BEST else b""
        heartbeat = _HEARTBEAT if for_s > 2 * IDLE_HEARTBEAT_S else b""
        batch = 1 if time.monotonic() < self._singly_until else slots
        for _ in range(slots // batch):
            await self._ask(batch, _PULL % (batch, for_s * NANOS, passed_over + heartbeat))

    async def take(self) -> None:
        """Have one message, if one is there now."""
        await self._ask(1, _TAKE)

    async def _ask(self, slots: int, body: bytes) -> None:
        if self._subscription is None:
            return
        now = time.monotonic()
        if not self.offered:
            self._heard_at = now
            self._since.clear()
        self.offered += slots
        self._since.append([now, slots])
        try:
            await self._bus.publish(self._next, body, self._inbox)
        except BusUnavailable:
            self._renew.set()

    async def withdraw(self) -> None:
        """Take every offer back. Messages already handed over are still delivered, or come again."""
        async with self._inbox_lock:
            await self._drop_inbox()

    async def resume(self) -> None:
        """Be ready for offers again after `withdraw`."""
        if self._subscription is None:
            async with self._inbox_lock:
                if self._subscription is None:
                    await self._new_inbox()

    async def _replace_inbox(self) -> None:
        async with self._inbox_lock:
            await self._drop_inbox()
            await self._new_inbox()

    async def _drop_inbox(self) -> None:
        subscription, self._subscription = self._subscription, None
        self.offered = 0
        self._since.clear()
        if subscription is None:
            return
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            if self._bus.is_connected:
                # What the server sent before it heard of the end is still handed over, not left to ack_wait.
                async with asyncio.timeout(DRAIN_WITHIN_S):
                    await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py leaves it untyped
            else:
                await subscription.unsubscribe()

    async def _new_inbox(self) -> None:
        inbox = self._inbox = self._bus.new_inbox()

        async def arrived(message: Msg) -> None:
            self._heard_at = time.monotonic()
            if message.headers is not None and names.STATUS in message.headers:
                if inbox == self._inbox:
                    self._on_status(message.headers)
                return
            if inbox == self._inbox:
                self._served()
                if not message.data and not message.headers:
                    self._was_ended()
            self._on_delivery(delivery(message))

        # A peer never has more in flight than it offered, so the client's own limits are no use here.
        self._subscription = await self._bus.nc.subscribe(
            inbox, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._heard_at = time.monotonic()

    def _was_ended(self) -> None:
        now = time.monotonic()
        if now >= self._singly_until:
            self._renew.set()
        self._singly_until = now + SINGLY_S

    def _served(self) -> None:
        self.served += 1
        self.offered = max(0, self.offered - 1)
        if self._since:
            oldest = self._since[0]
            self.waited_s = self._heard_at - oldest[0]
            oldest[1] -= 1
            if not oldest[1]:
                self._since.popleft()

    def _on_status(self, found: Headers) -> None:
        status = found[names.STATUS]
        if status == "100":
            return
        if status in _ENDED:
            left = int(found.get(names.PENDING_MESSAGES, 1 if status == NO_MESSAGES else self.offered))
            self.offered = max(0, self.offered - left)
            if status == NO_MESSAGES:
                self._on_empty()
            else:
                self._on_room()
            return
        log.info("%s: %s %s", self._next, status, found.get(names.DESCRIPTION, "").strip())
        self._on_lost()
        self._renew.set()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._renew.wait()
            is_silent = self.offered > 0 and time.monotonic() - self._heard_at > SILENT_AFTER_S
            if not self._renew.is_set() and not is_silent:
                continue
            if is_silent:
                self._on_lost()
                log.info("%s: silent for %g s, pulling anew", self._next, SILENT_AFTER_S)
            await self._bus.until_connected()
            if self._subscription is None:
                self._renew.clear()
                continue
            await asyncio.sleep(RENEW_AFTER_S)
            self._renew.clear()
            try:
                await self._replace_inbox()
            except (nats.errors.Error, OSError):
                self._renew.set()
                continue
            self._on_room()


def delivery(message: Msg) -> Delivery:
    """A delivered message with what its ack subject tells.

    `$JS.ACK.<stream>.<consumer>.` and five figures; across domains two tokens more in front (ADR-15).
    """
    tokens = message.reply.split(".")
    first = 4 if len(tokens) < 11 else 6
    return Delivery(
        subject=message.subject,
        payload=message.data,
        headers=message.headers or _NO_HEADERS,
        reply=message.reply,
        sequence=int(tokens[first + 1]),
        delivered=int(tokens[first]),
        stored_at=int(tokens[first + 3]) / NANOS,
        pending=int(tokens[first + 4]),
    )


_PULL = b'{"batch":%%d,"expires":%%d,"group":"%s"%%s}' % PRIORITY_GROUP.encode()
_HEARTBEAT = b',"idle_heartbeat":%d' % (IDLE_HEARTBEAT_S * NANOS)
_TAKE = b'{"batch":1,"no_wait":true,"group":"%s"}' % PRIORITY_GROUP.encode()
