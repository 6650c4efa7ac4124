"""How many tasks may wait in a queue, as its clients learn it: from the queue's consumer, which no one has to run.

A peer writes the bound into the metadata of the consumer when it makes it. One question to the server gives a client
the bound and how many wait. Rules:

- A queue without a consumer, or whose consumer has no bound, is not bounded.
- A client that cannot ask (the server says nothing, or its permissions forbid it) goes on without a bound, and asks
  again later.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.bus.connection import Bus
from mesh.bus.replies import ApiError
from mesh.errors import BusUnavailable, Overloaded, PermissionDenied, PublishUnconfirmed
from mesh.resilience.queue_bound import REFRESH_S, Look, QueueCredit

log = logging.getLogger("mesh.bus")

BOUND: Final = "mesh-queue-max"
"""The key of a consumer's metadata."""
QUEUES_MAX: Final = 1_000
"""Of which a client remembers what it saw."""
LOOK_WITHIN_S: Final = 1.0
BLIND_S: Final = 30.0
"""How long a queue that cannot be looked at is left alone."""


def bound_of(config: Mapping[str, Any]) -> int:
    """How many tasks may wait, as the configuration of a queue's consumer says; 0 for no bound."""
    text = str((config.get("metadata") or {}).get(BOUND, ""))
    return int(text) if text.isdecimal() else 0


@dataclass(slots=True)
class Queue:
    """What a client knows of one queue, and what it has added to it that the last look does not show."""

    credit: QueueCredit | None = None
    blind_until: float = 0.0
    roomy_below: float = 0.0
    """Until `fresh_until`, and so many submissions, there is nothing to reckon: a submission costs next to nothing."""
    fresh_until: float = 0.0
    under_way: int = 0
    stored: int = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def settle(self, *, is_stored: bool) -> None:
        """Take note of what became of a submission that was admitted."""
        self.under_way -= 1
        self.stored += is_stored


class Queues:
    """Keeps one client's submissions within the bounds of their queues."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queues: OrderedDict[str, Queue] = OrderedDict()

    def admitted(self, name: str) -> Queue | None:
        """As `admit`, where it need not ask; None where it may have to."""
        queue = self._queues.get(name)
        if queue is None or queue.under_way + queue.stored >= queue.roomy_below:
            return None
        # While somebody looks, the others go by the last look: they would all wait for one answer.
        lasts_s = REFRESH_S if queue.asking.locked() else 0.0
        if time.monotonic() >= queue.fresh_until + lasts_s:
            return None
        queue.under_way += 1
        return queue

    async def admit(self, name: str) -> Queue:
        """The queue of that name, which is its consumer's, with room for one more task; `settle` it then.

        Raises:
            Overloaded: as many wait as may.
        """
        queue = self._queues.get(name) or self._queue(name)
        if self._is_due(queue):
            await self._look(name, queue)
        credit, added = queue.credit, queue.under_way + queue.stored
        if credit is not None and not credit.admits(added):
            capability, _, lane = name.partition("@")
            retry_after_s = credit.retry_after_s(added)
            raise Overloaded(
                f"{credit.depth(added)} tasks wait for {capability} in its {lane or 'normal'} lane, its bound is"
                f" {credit.look.bound}; try again in {retry_after_s:.1f} s",
                retry_after_s=retry_after_s,
            )
        queue.under_way += 1
        return queue

    def _queue(self, name: str) -> Queue:
        queue = self._queues[name] = Queue()
        if len(self._queues) > QUEUES_MAX:
            self._queues.popitem(last=False)
        return queue

    async def _look(self, name: str, queue: Queue) -> None:
        async with queue.asking:
            if not self._is_due(queue):
                return
            shown = queue.stored
            look = await self._ask(name)
            if look is None:
                queue.credit, queue.blind_until = None, time.monotonic() + BLIND_S
                queue.roomy_below = 0.0
            else:
                credit = QueueCredit.first(look) if queue.credit is None else queue.credit.after(look)
                queue.credit, queue.roomy_below, queue.fresh_until = credit, credit.roomy_below, look.at + REFRESH_S
            queue.stored -= shown

    def _is_due(self, queue: Queue) -> bool:
        now, credit = time.monotonic(), queue.credit
        if credit is None:
            return now >= queue.blind_until
        return credit.is_stale(queue.under_way + queue.stored, now=now)

    async def _ask(self, name: str) -> Look | None:
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                info = await self._bus.api(f"CONSUMER.INFO.{self._bus.subjects.stream}.{name}")
        except ApiError as error:
            if error.status == 404:
                return Look(depth=0, bound=0, handed_out=0, at=time.monotonic())
            reason = str(error)
        except (BusUnavailable, PermissionDenied, PublishUnconfirmed, TimeoutError) as error:
            reason = str(error) or f"no answer within {LOOK_WITHIN_S:g} s"
        else:
            handed_out = info["delivered"]["consumer_seq"]
            return Look(info["num_pending"], bound_of(info["config"]), handed_out, time.monotonic())
        log.warning("the queue %s cannot be looked at, so it has no bound here for %g s: %s", name, BLIND_S, reason)
        return None
