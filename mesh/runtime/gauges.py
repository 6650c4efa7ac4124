"""What a peer's state is when somebody asks: gauges, read from the runtime at each scrape."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from mesh.resilience.breaker import State
from mesh.runtime.host import Host
from mesh.runtime.intake import Intake


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

    def read(self) -> Iterator[GaugeMetricFamily]:
        in_flight = GaugeMetricFamily("mesh_in_flight_tasks", "Tasks in the hands of this peer.", labels=["capability"])
        slots = GaugeMetricFamily("mesh_slots", "Tasks this peer runs at once.", labels=["capability"])
        offered = GaugeMetricFamily(
            "mesh_offered_slots", "Slots on offer to the server; a free one may be in several lanes.",
            labels=["capability", "lane"],
        )  # fmt: skip
        idle = GaugeMetricFamily("mesh_idle_slots", "Free slots, by why they are.", labels=["capability", "why"])
        bids = GaugeMetricFamily(
            "mesh_bid", "Tasks that must wait before this peer takes one more; 1 is best.", labels=["capability"]
        )
        service = GaugeMetricFamily(
            "mesh_service_seconds", "Moving average of the time a task holds a slot.", labels=["capability"]
        )
        waiting = GaugeMetricFamily(
            "mesh_waiting_tasks", "Waiting tasks kept in memory.", value=len(self._host.waiting)
        )
        depth = GaugeMetricFamily(
            "mesh_queue_depth_tasks", "Tasks waiting behind the last one delivered here.", labels=["capability"]
        )
        paused = GaugeMetricFamily("mesh_paused", "1 while an operator paused it.", labels=["capability"])
        breakers = GaugeMetricFamily(
            "mesh_breaker_state", "1 for the state that a circuit breaker is in.", labels=["breaker", "state"]
        )
        for name, current in self._host.breakers.states().items():
            for state in State:
                breakers.add_metric([name, state], float(state is current))
        for intake in self._intakes:
            load, label = intake.load(), [intake.capability.name]
            in_flight.add_metric(label, load.in_flight)
            slots.add_metric(label, load.slots)
            for lane, count in intake.offering.offered.items():
                offered.add_metric([*label, lane or "normal"], count)
            for why, count in intake.offering.idle().items():
                idle.add_metric([*label, why], count)
            bids.add_metric(label, load.bid)
            service.add_metric(label, load.service_s)
            depth.add_metric(label, intake.queue_depth)
            paused.add_metric(label, load.is_paused)
        ready = GaugeMetricFamily("mesh_ready", "1 while this peer takes work.", value=self._is_ready()[0])
        reconnects = GaugeMetricFamily(
            "mesh_reconnections", "Reconnections to NATS since the start.", value=self._host.bus.reconnects
        )
        peers = GaugeMetricFamily("mesh_live_peers", "Peers this one hears.", value=self._live_peers())
        lag = GaugeMetricFamily("mesh_loop_lag_seconds", "How late the event loop is.", value=self._host.lag.late_s)
        yield from (
            in_flight,
            slots,
            offered,
            idle,
            bids,
            service,
            waiting,
            depth,
            paused,
            breakers,
            ready,
            reconnects,
            peers,
            lag,
        )
