"""Publishing events: handed to the connection and forgotten, or stored once."""

import asyncio
import time
from collections.abc import Awaitable, Mapping

from nats.aio.msg import Msg

from mesh.bus.commit import CREATE_ONCE, FIRST_RETRY_S, RETRY_S_MAX
from mesh.bus.connection import Bus
from mesh.errors import BusUnavailable, PublishRejected, PublishUnconfirmed, SequenceConflict, StreamFull


async def drop(bus: Bus, subject: str, data: bytes, *, is_guarded: bool = False) -> bool:
    """Hand an event to the connection, and wait for nothing. False: the connection is gone, and so is the event."""
    if not bus.is_connected:
        # nats-py would keep it, in the room that acks and heartbeats need.
        return False
    try:
        await bus.publish(subject, data, headers=CREATE_ONCE if is_guarded else None)
    except (BusUnavailable, PublishRejected):
        return False
    return True


async def store_once(bus: Bus, events: Mapping[str, bytes], *, within_s: float) -> dict[str, bool]:
    """Store each event unless one is kept on its subject; whether it is new, by subject. Safe to repeat.

    Left out is what the stream refuses, or what it did not answer for in `within_s` seconds, repeated until then.
    Waits for the connection as long as it takes.
    """
    left, stored = dict(events), dict[str, bool]()
    give_up_at, wait_s = time.monotonic() + within_s, FIRST_RETRY_S
    while left:
        if not bus.is_connected:
            await bus.until_connected()
            give_up_at = time.monotonic() + within_s
        for subject, is_new in (await _stored(bus, left)).items():
            del left[subject]
            if is_new is not None:
                stored[subject] = is_new
        if not left or time.monotonic() >= give_up_at:
            break
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_S_MAX)
    return stored


async def _stored(bus: Bus, events: Mapping[str, bytes]) -> dict[str, bool | None]:
    """What the stream says to events that are published at once: new, kept already, or (None) never to be taken."""
    said: dict[str, bool | None] = {}
    sent: list[tuple[str, Awaitable[Msg]]] = []
    for subject, data in events.items():
        try:
            sent.append((subject, await bus.post(subject, data, CREATE_ONCE)))
        except PublishRejected:
            said[subject] = None
        except BusUnavailable:
            continue
    for subject, answer in sent:
        try:
            bus.stored_at(subject, await answer)
            said[subject] = True
        except SequenceConflict:
            said[subject] = False
        except (BusUnavailable, PublishUnconfirmed, StreamFull):
            continue
        except PublishRejected:
            said[subject] = None
    return said
