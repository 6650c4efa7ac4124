"""What waits for people: how much of it, and whether there is room for more."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from contracts.subjects import Identity
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.bus.parks import parked_since
from mesh.bus.records import read_many
from mesh.endings import HUMAN
from mesh.errors import Overloaded

PAGE: Final = 200
"""Proposals read at once; each may be as large as a payload."""
COUNT_KEPT_S: Final = 1.0
RETRY_AFTER_S: Final = 30.0


class Inbox:
    """The proposals that wait, as a peer that is about to make another one sees them."""

    def __init__(self, bus: Bus, *, most: int) -> None:
        self._bus = bus
        self._most = most
        self._waiting: set[Identity] = set()
        self._counted_at = 0.0
        # Counting takes a round trip, and those who are admitted meanwhile must be in the count.
        self._counting = asyncio.Lock()

    async def admit(self, task: Identity) -> None:
        """Make room for one more, which is about to be submitted.

        Raises:
            Overloaded: as many wait as people are to be shown.
        """
        async with self._counting:
            now = time.monotonic()
            if now - self._counted_at > COUNT_KEPT_S:
                self._waiting, self._counted_at = await unanswered(self._bus), now
            if task in self._waiting:
                return
            if len(self._waiting) >= self._most:
                raise Overloaded(
                    f"{len(self._waiting)} proposals wait for people, the inbox holds {self._most} (MESH_INBOX_MAX)",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._waiting.add(task)


async def unanswered(bus: Bus) -> set[Identity]:
    """Proposals that are queued or parked and have no result, of at most 100,000 kept ones."""
    subjects = bus.subjects
    found: dict[str, set[Identity]] = {}
    for filter_subject in (subjects.tasks_of(HUMAN), subjects.parks_of(HUMAN), subjects.results_of(HUMAN)):
        standing = await topology.queued(bus, filter_subject)
        found[filter_subject] = {subjects.parse(subject).identity for subject in standing}
    queued, parked, answered = found.values()
    return (queued | parked) - answered


async def waiting_since(bus: Bus, known: Mapping[Identity, float]) -> dict[Identity, float]:
    """Since when each proposal waits that has no result, as Unix seconds; only those are read that are not `known`."""
    waiting = await unanswered(bus)
    since = {task: known[task] for task in waiting if task in known}
    new = sorted(waiting - since.keys(), key=lambda task: task.id)
    for start in range(0, len(new), PAGE):
        page = new[start : start + PAGE]
        parks = await read_many(bus, [bus.subjects.park(task) for task in page])
        since |= {task: parked_since(park) for task, park in zip(page, parks, strict=True) if park is not None}
        for task in page:
            if task not in since:
                for stored in await read_many(bus, bus.subjects.queued(task)):
                    if stored is not None:
                        since[task] = stored.stored_at
    # What is in neither place was answered between two reads.
    return since
