"""Parking a task, and waking it.

A park record is the task itself, given back to the stream while it waits. It is written once, at the first wait
that outlasts memory, and stays; from then on the task runs when a wake is delivered. Rules:

- Who ends a wait (a child's peer, a signal, a timer) records that first, then asks the stream for the park, then
  wakes. Who parks writes the park, then reads what it waits for once more, then acks. So one of the two sees the
  other.
- The stream is asked with a write that cannot pass: its refusal tells the park's sequence as the leader has it,
  where a read from a lagging replica may miss it.
- A wake that meets another one may come too late for that one, whose run has perhaps read everything already. So
  it is left as `wake@again`, which whoever gets it turns into a wake when the first one is acked.
- A wake that meets both relies on the `wake@again` only if that is the younger one: an older one may be spent, its
  wake published and only its ack outstanding. Then it is tried again, with no slot held meanwhile. A `wake@again`
  that meets a younger wake has nothing left to do.
- No wake is published for a task that has a result.
"""

import asyncio

from contracts import headers as names
from contracts import wire
from contracts.subjects import Identity
from contracts.task import Task
from mesh.bus import topology
from mesh.bus.commit import create_once, ttl
from mesh.bus.connection import Bus, Headers
from mesh.bus.leader import standing
from mesh.bus.pull import Delivery
from mesh.bus.records import RETRY_S, Stored, read

_KEPT = (names.OURS, names.CONTENT_TYPE, *names.TRACE)
"""How the names of headers begin that stay with a task."""
AGAIN_S_MAX = 2.0


async def park(bus: Bus, task: Identity, delivery: Delivery, *, keep_until: float, ttl_s: float) -> None:
    """Keep the task as it was delivered, with until when its records are kept. Safe to repeat: the first one stands.

    Raises:
        PublishRejected: the server refuses it for good.
    """
    kept: Headers = {name: value for name, value in delivery.headers.items() if name.startswith(_KEPT)}
    # What of it this process does not know stays in it.
    envelope = delivery.headers.get(names.TASK, "").encode() or wire.encode(Task())
    kept[names.TASK] = wire.amend(envelope, {"keep_until": keep_until}).decode()
    kept[names.PARKED] = repr(delivery.stored_at)
    kept[names.TTL] = ttl(ttl_s)
    await create_once(bus, bus.subjects.park(task), delivery.payload, kept)


async def read_park(bus: Bus, task: Identity) -> Stored | None:
    """The park record of a task, or None."""
    return await read(bus, bus.subjects.park(task))


def parked_since(park: Stored) -> float:
    """When the parked task was stored at first, as Unix seconds."""
    try:
        return float(park.headers.get(names.PARKED, ""))
    except ValueError:
        return park.stored_at


async def is_parked(bus: Bus, task: Identity) -> bool:
    """Whether the task has a park record, as the stream's leader has it. Repeated until it answers."""
    return await standing(bus, task, bus.subjects.park(task)) > 0


async def wake(bus: Bus, task: Identity) -> bool:
    """Have a parked task looked at again. False: it is not parked, so whoever runs it looks itself.

    Safe to repeat. When this returns, a run of the task starts after it was called, or the task has a result.

    Raises:
        PublishRejected: the server refuses it for good.
    """
    if not await is_parked(bus, task):
        return False
    wait_s = RETRY_S
    while not await publish_wake(bus, task) and not await _is_left(bus, task):
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, AGAIN_S_MAX)
    return True


async def _is_left(bus: Bus, task: Identity) -> bool:
    """Leave a wake that met another one for later. False: it cannot be told whether anybody looks later."""
    subjects = bus.subjects
    woken_at = await standing(bus, task, subjects.wake(task))
    if await create_once(bus, subjects.wake(task, is_again=True), b"", {}, within=_unanswered(bus, task)):
        return True
    again_at = await standing(bus, task, subjects.wake(task, is_again=True))
    return again_at > woken_at > 0 or await standing(bus, task, subjects.result(task)) > 0


async def wake_tree(bus: Bus, task: Identity) -> None:
    """Have a task looked at again, and every parked one below it. Safe to repeat.

    Raises:
        PublishRejected: the server refuses it for good.
        BusUnavailable, PublishUnconfirmed: the stream does not say what is parked below.
    """
    await wake(bus, task)
    for subject in await topology.queued(bus, bus.subjects.parks_below(task.id)):
        await wake(bus, bus.subjects.parse(subject).identity)


async def publish_wake(bus: Bus, task: Identity) -> bool:
    """Publish the wake itself. False: one stands already, or the task has a result."""
    return await create_once(bus, bus.subjects.wake(task), b"", {}, within=_unanswered(bus, task))


def _unanswered(bus: Bus, task: Identity) -> Headers:
    return {names.EXPECTED_SUBJECT_SEQUENCE: "0", names.EXPECTED_SUBJECT: bus.subjects.result(task)}
