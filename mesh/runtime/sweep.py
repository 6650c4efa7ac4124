"""Look for messages that no consumer will hand out, and set them going again.

Seen in kill storms of the broker: a message stays in the stream, while its consumer counts it neither as
pending nor as in flight. A capability whose stream holds more than its consumer counts, twice in a row for the
same subject, has its consumer reset to that sequence; everything handed out again by that meets its record,
or the peer that runs it, and is left alone.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from contracts import wire
from contracts.control import WhoRuns
from contracts.event import EventKind
from mesh.bus import topology
from mesh.bus.records import read_many
from mesh.capability import Capability
from mesh.errors import BusError
from mesh.runtime.host import Host
from mesh.scheduling.lanes import NORMAL, ORDER

log = logging.getLogger("mesh.runtime")

DEEP = 1_000
"""A queue with more pending than this moves, or is seen to be long; it is not swept."""
DISTRUST_S = 0.3


@dataclass(slots=True)
class Sweep:
    """What one peer remembers between rounds."""

    host: Host
    suspects: dict[str, set[str]] = field(default_factory=dict)

    async def keep(self, capabilities: Iterable[Capability[Any, Any, Any]], live_peers: Callable[[], int]) -> None:
        """Sweep for ever; the more peers, the more seldom each, so that the fleet sweeps about every `sweep_s`."""
        while True:
            mean_s = self.host.settings.sweep_s * max(1, live_peers())
            await asyncio.sleep(mean_s * random.uniform(0.5, 1.5))  # noqa: S311  # spreads load, hides nothing
            try:
                for capability in capabilities:
                    for lane in ORDER:
                        await self.round(capability, lane)
            except BusError as error:
                log.info("sweep put off: %s", error)

    async def round(self, capability: Capability[Any, Any, Any], lane: str = NORMAL) -> int:
        """One look at a capability's lane. The number of messages set going again."""
        host, name = self.host, capability.name
        spec = topology.consumer(host.settings, name, lane)
        info = await topology.inspect(host.bus, spec)
        if info is None or info["num_pending"] > DEEP:
            self.suspects.pop(spec.name, None)
            return 0
        standing: dict[str, int] = {}
        for filter_subject in spec.config["filter_subjects"]:
            standing |= await topology.queued(host.bus, filter_subject)
        counted = info["num_pending"] + info["num_ack_pending"]
        running = {attempt.delivery.subject for attempt in host.running.values()}
        before = self.suspects.pop(spec.name, set())
        if sum(standing.values()) <= counted:
            return 0
        now = set(standing) - running
        self.suspects[spec.name] = now
        stranded = [stored for stored in await read_many(host.bus, sorted(now & before)) if stored is not None]
        delivered = info["delivered"]["stream_seq"]
        stranded = [stored for stored in stranded if stored.sequence <= delivered]
        if not stranded:
            return 0
        first = min(stored.sequence for stored in stranded)
        # What is in flight comes again as if for the first time; every peer must know before it does.
        distrust = host.bus.subjects.ctl(name, "distrust")
        await host.bus.gather(distrust, wire.encode(WhoRuns()), within_s=DISTRUST_S)
        await topology.reset_consumer(host.bus, spec, first)
        host.metrics.revived.of(name).inc(len(stranded))
        log.warning("%s: consumer reset to %d: %d messages were handed out to nobody", spec, first, len(stranded))
        for stored in stranded:
            await host.tell(EventKind.REVIVED, host.bus.subjects.parse(stored.subject).identity)
        return len(stranded)
