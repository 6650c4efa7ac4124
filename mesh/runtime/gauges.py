"""What a peer's state is when somebody asks: gauges, read from the runtime at each scrape."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric as Shown

from mesh.resilience.breaker import State
from mesh.runtime.host import Host
from mesh.runtime.intake import Intake
from mesh.scheduling.lanes import NORMAL, ORDER
from mesh.telemetry import catalogue
from mesh.telemetry.cells import counter, gauge
from mesh.telemetry.metrics import distribution_version

OF_PROCESS = {
    "process_start_time_seconds": catalogue.STARTED_AT,
    "process_resident_memory_bytes": catalogue.MEMORY_BYTES,
}


class Gauges:
    """The gauges of one peer. They cost a task nothing."""

    def __init__(
        self,
        host: Host,
        intakes: Sequence[Intake],
        *,
        is_ready: Callable[[], tuple[bool, str]],
        live_peers: Callable[[], int],
    ) -> None:
        self._host = host
        self._intakes = intakes
        self._is_ready = is_ready
        self._live_peers = live_peers
        self._process = ProcessCollector(registry=None)
        self._build = {"version": distribution_version(), "python": platform.python_version()}

    def read(self) -> Iterator[Shown]:
        """All of them as they are now; in the thread of the scrape, so nothing is changed and nothing waited for."""
        yield from self._of_capabilities()
        yield from self._of_peer()

    def _of_capabilities(self) -> Iterator[Shown]:
        in_flight, slots = gauge(catalogue.IN_FLIGHT), gauge(catalogue.SLOTS)
        offered, idle = gauge(catalogue.OFFERED_SLOTS), gauge(catalogue.IDLE_SLOTS)
        bids, service = gauge(catalogue.BID), gauge(catalogue.SERVICE_S)
        depth, paused = gauge(catalogue.QUEUE_DEPTH), gauge(catalogue.PAUSED)
        agents, oldest = gauge(catalogue.AGENT_INFO), gauge(catalogue.OLDEST_TASK_S)
        ages = self._ages_s()
        for intake in self._intakes:
            load, agent, label = intake.load(), intake.capability.agent, [intake.capability.name]
            in_flight.add_metric(label, load.in_flight)
            slots.add_metric(label, load.slots)
            for lane, count in intake.offering.offered.items():
                lane_label = [*label, lane or "normal"]
                offered.add_metric(lane_label, count)
                oldest.add_metric(lane_label, ages.get((*label, lane), 0.0))
            for why, count in intake.offering.idle().items():
                idle.add_metric([*label, why], count)
            bids.add_metric(label, load.bid)
            service.add_metric(label, load.service_s)
            depth.add_metric(label, intake.queue_depth)
            paused.add_metric(label, load.is_paused)
            agents.add_metric([*label, agent.name, agent.version, agent.owner], 1)
        yield from (in_flight, slots, offered, idle, bids, service, depth, oldest, paused, agents)

    def _ages_s(self) -> dict[tuple[str, ...], float]:
        """How old the oldest task of each lane is that is in the hands of this peer."""
        ages: dict[tuple[str, ...], float] = {}
        for attempt in self._host.running.copy().values():
            address = self._host.bus.subjects.parse(attempt.delivery.subject)
            # A task that was woken has its park's time, and counts as one of the normal lane.
            lane = address.capability, address.lane if address.lane in ORDER else NORMAL
            ages[lane] = max(ages.get(lane, 0.0), time.time() - attempt.delivery.stored_at)
        return ages

    def _of_peer(self) -> Iterator[Shown]:
        host = self._host
        breakers = gauge(catalogue.BREAKER_STATE)
        for name, current in host.breakers.states().items():
            if host.metrics.breaker_names.has(name):
                for state in State:
                    breakers.add_metric([name, state], float(state is current))
        yield breakers
        yield gauge(catalogue.READY, self._is_ready()[0])
        yield gauge(catalogue.LIVE_PEERS, self._live_peers())
        yield gauge(catalogue.WAITING, len(host.waiting))
        yield gauge(catalogue.LOOP_LAG_S, host.lag.late_s)
        yield counter(catalogue.RECONNECTIONS, host.bus.reconnects)
        build = gauge(catalogue.BUILD_INFO)
        build.add_metric([self._build[label] for label in catalogue.BUILD_INFO.labels], 1)
        yield build
        for shown in self._process.collect():
            if (metric := OF_PROCESS.get(shown.name)) is not None:
                yield gauge(metric, shown.samples[0].value)
