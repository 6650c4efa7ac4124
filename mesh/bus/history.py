"""Reading what a stream keeps in order: from a time on, by subject, to its end or for as long as one listens.

Rules.
- The reader's place is the sequence of the last message it was given. An ephemeral consumer hands out what comes after
  it, without acks, and is made anew from there whenever the account may be wrong: after a reconnection, a refusal, a
  gap in its deliveries, or silence past two heartbeats. So nothing is left out and nothing comes twice.
- What is asked for is bounded: a batch, and the next one once it has been taken.
- A stream that lost its end (a power cut) counts on from where it stands; the place follows it back.
"""

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg

from contracts import headers as names
from mesh.bus.connection import Bus, Headers
from mesh.bus.records import RETRY_S, Stored
from mesh.bus.replies import STREAM_NOT_FOUND, ApiError
from mesh.errors import BusUnavailable, PublishUnconfirmed

BATCH: Final = 2_000
EXPIRES_S: Final = 30
HEARTBEAT_S: Final = 2
SILENT_AFTER_S: Final = 2 * HEARTBEAT_S + 1
KEPT_S: Final = 60
"""How long the server keeps a consumer that nobody asks."""
NANOS: Final = 1_000_000_000
_NO_HEADERS: Headers = {}


class NoStream(ApiError):
    """There is no such stream."""


@dataclass(slots=True)
class _Place:
    """How far a reader has come: the last sequence it was given, and of its consumer."""

    sequence: int = 0
    delivered: int = 0


@dataclass(slots=True)
class _Arrivals:
    """What came to the reader's inbox and was not taken yet."""

    messages: deque[Msg] = field(default_factory=deque)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, message: Msg) -> None:
        self.messages.append(message)
        self.came.set()

    async def wait(self, within_s: float) -> bool:
        """Whether there is something to take, now or in time."""
        if self.messages:
            return True
        self.came.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.came.wait()
        return bool(self.messages)


async def read_on(
    bus: Bus,
    stream: str,
    filters: Sequence[str],
    *,
    since: float | None = None,
    follow: bool = False,
    caught_up: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Stored, None]:
    """Messages of a stream that any of the filters matches, in order of storage; stored at `since` or later, if given.

    Ends with the last one that was stored when it began, or with `follow` never: it waits for more, also while the
    server is away. `caught_up` is called once, when what was stored when it began has been taken. Close it
    (`aclosing`) when it is not read to its end.

    Raises:
        NoStream: there is none.
    """
    place, has_begun, is_told = _Place(), False, False
    while True:
        name = f"read-{secrets.token_hex(6)}"
        try:
            pending = await _made(bus, stream, name, filters, place=place, since=since, again=has_begun)
        except (BusUnavailable, PublishUnconfirmed):
            await bus.until_connected()
            await asyncio.sleep(RETRY_S)
            continue
        has_begun, place.delivered = True, 0
        async with _listening(bus, stream, name) as (inbox, arrivals):
            if pending <= 0 and not is_told:
                is_told = True
                caught_up()
            async for stored in _handed_out(bus, stream, name, inbox, arrivals, place, pending, follow=follow):
                yield stored
                pending -= 1
                if pending <= 0 and not is_told:
                    is_told = True
                    caught_up()
        if not follow and pending <= 0:
            return
        await asyncio.sleep(RETRY_S)


async def _handed_out(
    bus: Bus,
    stream: str,
    name: str,
    inbox: str,
    arrivals: _Arrivals,
    place: _Place,
    pending: int,
    *,
    follow: bool,
) -> AsyncGenerator[Stored, None]:
    """What one consumer hands out, until its account may be wrong, or nothing is pending and more is not wanted."""
    reconnects = bus.reconnects
    asked = 0
    while follow or pending > 0:
        if asked <= 0:
            asked = await _ask(bus, stream, name, inbox)
        if not await arrivals.wait(SILENT_AFTER_S) or bus.reconnects != reconnects:
            return
        message = arrivals.messages.popleft()
        status = (
            (message.headers or _NO_HEADERS).get(names.STATUS) if not message.reply.startswith("$JS.ACK.") else None
        )
        if status == "100":
            continue
        if status in ("404", "408"):
            # The request ran out; what it did not bring may be asked for again.
            asked = 0
            continue
        if status is not None:
            return
        sequence, delivered, stored_at = _account(message.reply)
        if delivered != place.delivered + 1:
            return
        place.delivered = delivered
        asked -= 1
        pending -= 1
        if sequence > place.sequence:
            place.sequence = sequence
            yield Stored(message.subject, sequence, stored_at, message.data, message.headers or _NO_HEADERS)


async def _made(
    bus: Bus,
    stream: str,
    name: str,
    filters: Sequence[str],
    *,
    place: _Place,
    since: float | None,
    again: bool,
) -> int:
    """Make a consumer that begins after `place`; how many messages wait in it."""
    config: dict[str, Any] = {
        "name": name,
        "ack_policy": "none",
        "filter_subjects": list(filters),
        "inactive_threshold": KEPT_S * NANOS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    try:
        if again and place.sequence:
            info = await bus.api(f"STREAM.INFO.{stream}")
            place.sequence = min(place.sequence, info["state"]["last_seq"])
        if place.sequence:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": place.sequence + 1}
        elif since is not None:
            start = datetime.fromtimestamp(since, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            config |= {"deliver_policy": "by_start_time", "opt_start_time": start}
        else:
            config |= {"deliver_policy": "all"}
        body = {"stream_name": stream, "config": config, "action": "create"}
        made = await bus.api(f"CONSUMER.CREATE.{stream}.{name}", body)
    except ApiError as error:
        if error.code == STREAM_NOT_FOUND:
            raise NoStream(f"there is no stream {stream}", code=error.code, status=error.status) from error
        raise
    return int(made["num_pending"])


@asynccontextmanager
async def _listening(bus: Bus, stream: str, name: str) -> AsyncIterator[tuple[str, _Arrivals]]:
    arrivals, inbox = _Arrivals(), bus.new_inbox()
    subscription = await bus.nc.subscribe(inbox, cb=arrivals.put, pending_msgs_limit=0, pending_bytes_limit=0)
    try:
        yield inbox, arrivals
    finally:
        with suppress(nats.errors.Error, BusUnavailable):
            await subscription.unsubscribe()
            if bus.is_connected:
                await bus.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")


async def _ask(bus: Bus, stream: str, name: str, inbox: str) -> int:
    request = {"batch": BATCH, "expires": EXPIRES_S * NANOS, "idle_heartbeat": HEARTBEAT_S * NANOS}
    # Nothing comes where this fails, and the consumer is made anew.
    with suppress(BusUnavailable):
        await bus.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", json.dumps(request).encode(), inbox)
    return BATCH


def _account(reply: str) -> tuple[int, int, float]:
    """Of a delivery: its sequence in the stream, its number among the consumer's, and when it was stored."""
    # "$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.…]"
    tokens = reply.split(".")
    first = 4 if len(tokens) < 11 else 6
    _, sequence, delivered, at = tokens[first : first + 4]
    return int(sequence), int(delivered), int(at) / NANOS
