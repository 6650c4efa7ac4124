"""What fires: timers become wakes, ticks of recurring tasks become tasks. Any peer of a capability does it for it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from contracts import wire
from contracts.errors import ContractError, NewerFormat
from contracts.workflow import Recurring
from mesh.bus import topology
from mesh.bus.commit import ack, nak
from mesh.bus.parks import wake
from mesh.bus.pull import Delivery, Pull
from mesh.bus.timers import submit_tick
from mesh.errors import BusUnavailable, PublishRejected, PublishUnconfirmed
from mesh.fibers import serving
from mesh.runtime.host import Host
from mesh.scheduling.credit import slots_to_offer

log = logging.getLogger("mesh.runtime")

AT_ONCE = 64
AGAIN_S = 5.0


class Timekeeper:
    """Takes what fired of one capability, and acks it once it is done."""

    def __init__(self, host: Host, capability: str, *, on_lost: Callable[[], None]) -> None:
        self._host = host
        self._busy = 0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._fibers: asyncio.TaskGroup
        self._is_open = False
        self._pull = Pull(
            host.bus,
            topology.timekeeper(host.settings, capability),
            on_delivery=self._arrived,
            on_room=self._wanted.set,
            on_lost=on_lost,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep time until left or stopped."""
        async with self._pull.open(), serving(self._keep_offering()), asyncio.TaskGroup() as self._fibers:
            self._is_open = True
            self._wanted.set()
            yield
            self._is_open = False

    async def stop(self) -> None:
        """Take nothing more; what was taken is done."""
        self._is_open = False
        await self._pull.withdraw()
        await self._idle.wait()

    async def _keep_offering(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            slots = slots_to_offer(AT_ONCE, self._busy, self._pull.offered)
            if self._is_open and slots:
                await self._pull.offer(slots)

    def _arrived(self, delivery: Delivery) -> None:
        self._busy += 1
        self._idle.clear()
        self._fibers.create_task(self._handle(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        try:
            await self._act(delivery)
            await ack(self._host.bus, delivery)
        except NewerFormat as error:
            log.warning("%s is left to a newer peer: %s", delivery.subject, error)
            await nak(self._host.bus, delivery, delay_s=AGAIN_S)
        except ContractError as error:
            log.error("%s cannot be acted on, it is dropped: %s", delivery.subject, error)
            await ack(self._host.bus, delivery)
        except (BusUnavailable, PublishUnconfirmed, PublishRejected) as error:
            log.warning("%s is put off: %s", delivery.subject, error)
            await nak(self._host.bus, delivery, delay_s=AGAIN_S)
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
            self._wanted.set()

    async def _act(self, delivery: Delivery) -> None:
        bus = self._host.bus
        if schedule := bus.subjects.schedule_name(delivery.subject):
            recurring = wire.decode(Recurring, delivery.payload)
            await submit_tick(bus, schedule, recurring, delivery.stored_at)
            return
        await wake(bus, bus.subjects.parse(delivery.subject).identity)
