"""The metrics of one peer. Labels are capabilities, versions, and words of closed sets: never ids.

Gauges are read from the runtime when scraped, so they cost a task nothing.
"""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from contracts.outcome import Status

QUEUE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
RUN_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
NO_LIMIT = "(none)"
COMMIT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class CapabilityMetrics:
    """The metrics of one capability, their labels looked up once."""

    def __init__(self, metrics: "Metrics", capability: str, version: str) -> None:
        self._metrics = metrics
        self._capability = capability
        self.tasks = {status: metrics.tasks.labels(capability, version, status) for status in Status}
        self.queue_s = metrics.queue_s.labels(capability)
        self.run_s = metrics.run_s.labels(capability)
        self.bid_to_start_s = metrics.bid_to_start_s.labels(capability)
        self.commit_s = metrics.commit_s.labels(capability)
        self.redeliveries = metrics.redeliveries.labels(capability)
        self.retries = metrics.retries.labels(capability)
        self.retries_delayed = metrics.retries_delayed.labels(capability)
        self.throttled = metrics.throttled.labels(capability)
        self.revived = metrics.revived.labels(capability)
        self.parks = metrics.parks.labels(capability)
        self.wakes = metrics.wakes.labels(capability)
        self.steps = {how: metrics.steps.labels(capability, how) for how in ("ran", "replayed")}
        self.duplicates = {at: metrics.duplicates.labels(capability, at) for at in ("submit", "start", "commit")}

    def handed_back(self, reason: str) -> None:
        self._metrics.handed_back.labels(self._capability, reason).inc()

    def dead_lettered(self, reason: str) -> None:
        self._metrics.dead_letters.labels(self._capability, reason).inc()


class BreakerMetrics:
    """The metrics of one circuit breaker."""

    def __init__(self, metrics: "Metrics", name: str) -> None:
        self.refused = metrics.breaker_refused.labels(name)
        self._metrics = metrics
        self._name = name

    def called(self, how: str) -> None:
        self._metrics.breaker_calls.labels(self._name, how).inc()


class LimitMetrics:
    """The metrics of limits, by resource; resources without one are counted as `(none)`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._wait_s = Histogram(
            "mesh_limit_wait_seconds",
            "How long a call waited for its turn at a resource with a limit.",
            ("resource",),
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )
        self._granted = Counter(
            "mesh_limit_granted", "Calls that had their turn at a resource.", ("resource",), registry=registry
        )
        self._refused = Counter(
            "mesh_limit_refused", "Calls whose turn would have come too late.", ("resource",), registry=registry
        )

    def granted(self, resource: str, waited_s: float) -> None:
        self._granted.labels(resource).inc()
        self._wait_s.labels(resource).observe(waited_s)

    def refused(self, resource: str) -> None:
        self._refused.labels(resource).inc()

    def unlimited(self) -> None:
        self._granted.labels(NO_LIMIT).inc()


class Metrics:
    """Counters and histograms of a peer, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter(
            "mesh_tasks",
            "Tasks this peer answered, by how they ended.",
            ("capability", "version", "status"),
            registry=self.registry,
        )
        self.queue_s = Histogram(
            "mesh_task_queue_seconds",
            "From stored to started.",
            ("capability",),
            buckets=QUEUE_BUCKETS,
            registry=self.registry,
        )
        self.run_s = Histogram(
            "mesh_task_run_seconds",
            "From started to the handler's end.",
            ("capability",),
            buckets=RUN_BUCKETS,
            registry=self.registry,
        )
        self.bid_to_start_s = Histogram(
            "mesh_bid_to_start_seconds",
            "From a slot's offer to the task that took it, the oldest offer first.",
            ("capability",),
            buckets=QUEUE_BUCKETS,
            registry=self.registry,
        )
        self.commit_s = Histogram(
            "mesh_task_commit_seconds",
            "From the handler's end to the stored result.",
            ("capability",),
            buckets=COMMIT_BUCKETS,
            registry=self.registry,
        )
        self.redeliveries = Counter(
            "mesh_redeliveries",
            "Deliveries of a message that had been delivered before.",
            ("capability",),
            registry=self.registry,
        )
        self.retries = Counter(
            "mesh_retries", "Failed attempts that will be tried again.", ("capability",), registry=self.registry
        )
        self.retries_delayed = Counter(
            "mesh_retries_delayed",
            "Retries put off because the peer made its share of them.",
            ("capability",),
            registry=self.registry,
        )
        self.throttled = Counter(
            "mesh_throttled",
            "Attempts that ended because a callee said: not now.",
            ("capability",),
            registry=self.registry,
        )
        self.handed_back = Counter(
            "mesh_handed_back",
            "Deliveries given back to the stream unsettled, by reason.",
            ("capability", "reason"),
            registry=self.registry,
        )
        self.dead_letters = Counter(
            "mesh_dead_letters",
            "Tasks kept as dead letters, by reason.",
            ("capability", "reason"),
            registry=self.registry,
        )
        self.duplicates = Counter(
            "mesh_duplicates",
            "Duplicates, by where they died: at submit, at start, at commit.",
            ("capability", "at"),
            registry=self.registry,
        )
        self.revived = Counter(
            "mesh_revived", "Stranded messages set going again by the sweep.", ("capability",), registry=self.registry
        )
        self.parks = Counter(
            "mesh_parks", "Waiting tasks given to the stream.", ("capability",), registry=self.registry
        )
        self.wakes = Counter(
            "mesh_wakes", "Parked tasks taken up again, by this peer.", ("capability",), registry=self.registry
        )
        self.steps = Counter(
            "mesh_steps",
            "Durable steps and children: run now, or found on record.",
            ("capability", "how"),
            registry=self.registry,
        )
        self.breaker_calls = Counter(
            "mesh_breaker_calls",
            "Calls through a circuit breaker, by what they came to.",
            ("breaker", "how"),
            registry=self.registry,
        )
        self.breaker_refused = Counter(
            "mesh_breaker_refused", "Calls that an open breaker held back.", ("breaker",), registry=self.registry
        )
        self.unserved = Gauge(
            "mesh_unserved_tasks",
            "Tasks queued for a capability that no consumer serves, as of the last sweep.",
            ("capability",),
            registry=self.registry,
        )
        self.limits = LimitMetrics(self.registry)
        build = Info("mesh_build", "Version of this peer.", registry=self.registry)
        build.info({"version": distribution_version(), "python": platform.python_version()})

    def of(self, capability: str, version: str) -> CapabilityMetrics:
        """The metrics of one capability, shown from the start at zero."""
        return CapabilityMetrics(self, capability, version)

    def breaker(self, name: str) -> BreakerMetrics:
        """The metrics of one circuit breaker."""
        return BreakerMetrics(self, name)

    def watch(self, read: Callable[[], Iterator[GaugeMetricFamily]]) -> None:
        """Have `read` called at every scrape for gauges that are derived from the runtime's state."""
        self.registry.register(_Derived(read))


class _Derived(Collector):
    def __init__(self, read: Callable[[], Iterator[GaugeMetricFamily]]) -> None:
        self._read = read

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return self._read()


def distribution_version() -> str:
    """The installed version of Starling, `0` from a bare checkout."""
    try:
        return version("starling-mesh")
    except PackageNotFoundError:
        return "0"
