"""Tickets sent through a desk, until each one is settled or waits for a person.

A bounded number is under way at once. A ticket that waits for a person, perhaps for days, does not count.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agents.support_desk import inbox, tickets
from agents.support_desk.figures import Settled
from agents.support_desk.payloads import HUMAN, SUPPORT, Resolution, Ticket
from mesh import Handle, Mesh, MeshError

UNDER_WAY_MAX: Final = 128
LOOK_EVERY_S: Final = 0.25
STALLED_AFTER_S: Final = 60.0


class Stalled(MeshError):
    """Some tickets are neither settled nor with a person, and nothing has changed for a while."""


@dataclass(slots=True)
class Journey:
    """One ticket that was sent, and what has become of it."""

    example: tickets.Ticket
    handle: Handle[Resolution]
    resolution: Resolution | None = None
    failure: MeshError | None = None
    waits_for_person: bool = False

    @property
    def key(self) -> str:
        return self.handle.id

    async def settle(self) -> None:
        """Wait for its end, whichever it is."""
        try:
            self.resolution = await self.handle.result()
        except MeshError as error:
            self.failure = error
        self.waits_for_person = False


async def send(mesh: Mesh, examples: Sequence[tickets.Ticket], *, on_progress: Callable[[], None]) -> list[Journey]:
    """The tickets' journeys, in their order. `on_progress` is called as each is settled or found waiting.

    Raises:
        Stalled: nothing has changed for a minute; what is under way goes on.
        MeshError: a ticket could not be submitted.
    """
    loop = asyncio.get_running_loop()
    sending = _Sending(mesh)
    try:
        async with asyncio.timeout(STALLED_AFTER_S) as patience, asyncio.TaskGroup() as fibers:

            def progress() -> None:
                patience.reschedule(loop.time() + STALLED_AFTER_S)
                on_progress()

            sending.on_progress = progress
            looking = fibers.create_task(sending.look())
            following = [
                fibers.create_task(sending.follow(await sending.submit(f"ticket-{number:05}", example)))
                for number, example in enumerate(examples, start=1)
            ]
            await sending.all_left()
            for fiber in (looking, *following):
                fiber.cancel()
    except TimeoutError:
        raise Stalled(sending.complaint(len(examples))) from None
    return sending.journeys


def settled(journey: Journey) -> Settled:
    """A journey as the figures count it. One that failed was settled by nobody."""
    wanted, resolution = journey.example.label, journey.resolution
    if resolution is None:
        return Settled(wanted, HUMAN if journey.waits_for_person else "")
    return Settled(wanted, resolution.rung, resolution.label, resolution.confidence)


class _Sending:
    """What is under way: sent, not settled, and not known to wait for a person."""

    def __init__(self, mesh: Mesh) -> None:
        self.journeys: list[Journey] = []
        self.on_progress: Callable[[], None] = lambda: None
        self._mesh = mesh
        self._room = asyncio.Semaphore(UNDER_WAY_MAX)
        self._under_way: dict[str, Journey] = {}

    async def submit(self, key: str, example: tickets.Ticket) -> Journey:
        """Send a ticket as soon as there is room for it."""
        await self._room.acquire()
        handle = await self._mesh.submit(SUPPORT, Ticket(example.text), key=key, returns=Resolution)
        journey = Journey(example, handle)
        self.journeys.append(journey)
        self._under_way[key] = journey
        return journey

    async def follow(self, journey: Journey) -> None:
        await journey.settle()
        self._leave(journey)

    async def look(self) -> None:
        """Find those that wait for a person, again and again."""
        while True:
            for key in await inbox.waiting(self._mesh):
                if (journey := self._under_way.get(key)) is not None:
                    journey.waits_for_person = True
                    self._leave(journey)
            await asyncio.sleep(LOOK_EVERY_S)

    async def all_left(self) -> None:
        """Return once nothing is under way."""
        for _ in range(UNDER_WAY_MAX):
            await self._room.acquire()

    def complaint(self, of: int) -> str:
        some = ", ".join(sorted(self._under_way)[:3])
        return (
            f"{len(self._under_way)} of {of} tickets are neither settled nor with a person, and nothing has changed"
            f" for {STALLED_AFTER_S:g} s: {some}"
        )

    def _leave(self, journey: Journey) -> None:
        if self._under_way.pop(journey.key, None) is not None:
            self._room.release()
            self.on_progress()
