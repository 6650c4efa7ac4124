"""The counters and histograms of one peer, as the catalogue has them.

What a peer's state is (its gauges) is read from the runtime when scraped, and costs a task nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Shown
from prometheus_client.registry import Collector

from contracts.errors import ContractError
from contracts.event import CLIENT
from contracts.outcome import DecidedBy, Outcome, Spent, Status
from contracts.subjects import check_capability
from mesh.telemetry import catalogue, tracing
from mesh.telemetry.catalogue import CALLERS_MAX, CHOICE_LENGTH_MAX, CHOICES_MAX, NAMES_MAX, NO_LIMIT, OTHERS
from mesh.telemetry.cells import (
    Count,
    Counts,
    Distribution,
    Distributions,
    Names,
    NoCount,
    NoDistribution,
    gauge,
    legible,
)
from mesh.telemetry.digests import Digests

Trace = Mapping[str, str]
READ_AGAIN_TIMES: Final = 10


class Metrics:
    """What one peer counts, in a registry of its own.

    With `is_on` false nothing is counted and no counter is shown; what is watched is.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        self.registry = CollectorRegistry()
        self.exemplar: Callable[[], Trace | None] = tracing.exemplar
        """The labels of an exemplar for what is observed now, `trace_id` among them; None where nothing is traced."""
        self._is_on = is_on
        self._families: list[Counts | Distributions] = []
        self.tasks = self._counts(catalogue.TASKS)
        self.calls = self._counts(catalogue.CALLS)
        self.deadline_misses = self._counts(catalogue.DEADLINE_MISSES)
        self.dead_letters = self._counts(catalogue.DEAD_LETTERS)
        self.queue_s = self._distributions(catalogue.QUEUE_S)
        self.run_s = self._distributions(catalogue.RUN_S)
        self.commit_s = self._distributions(catalogue.COMMIT_S)
        self.bid_to_start_s = self._distributions(catalogue.BID_TO_START_S)
        self.work_s = self._counts(catalogue.WORK_S)
        self.redeliveries = self._counts(catalogue.REDELIVERIES)
        self.retries = self._counts(catalogue.RETRIES)
        self.retries_delayed = self._counts(catalogue.RETRIES_DELAYED)
        self.throttled = self._counts(catalogue.THROTTLED)
        self.handed_back = self._counts(catalogue.HANDED_BACK)
        self.duplicates = self._counts(catalogue.DUPLICATES)
        self.revived = self._counts(catalogue.REVIVED)
        self.parks = self._counts(catalogue.PARKS)
        self.wakes = self._counts(catalogue.WAKES)
        self.steps = self._counts(catalogue.STEPS)
        self.escalations = self._counts(catalogue.ESCALATIONS)
        self.handoffs = self._counts(catalogue.HANDOFFS)
        self.confidence = self._distributions(catalogue.CONFIDENCE)
        self.decisions = self._counts(catalogue.DECISIONS)
        self.decision_confidence = self._distributions(catalogue.DECISION_CONFIDENCE)
        self.tokens = self._counts(catalogue.TOKENS)
        self.cost_usd = self._counts(catalogue.COST_USD)
        self.breaker_calls = self._counts(catalogue.BREAKER_CALLS)
        self.breaker_refused = self._counts(catalogue.BREAKER_REFUSED)
        self.breaker_transitions = self._counts(catalogue.BREAKER_TRANSITIONS)
        self.limits = LimitMetrics(
            self._distributions(catalogue.LIMIT_WAIT_S),
            self._counts(catalogue.LIMIT_GRANTED),
            self._counts(catalogue.LIMIT_REFUSED),
            trace=lambda: self.exemplar(),
        )
        self.events = _each(self._counts(catalogue.EVENTS), "kind")
        self.events_lost = self._counts(catalogue.EVENTS_LOST).of()
        self.breaker_names = Names(NAMES_MAX)
        self.callers = Names(CALLERS_MAX)
        self._capabilities: dict[tuple[str, DecidedBy], CapabilityMetrics] = {}
        self.registry.register(_Derived(self._shown))

    def of(self, capability: str, served_by: DecidedBy) -> "CapabilityMetrics":
        """The metrics of one capability of an agent, shown from the start at zero; the same ones when asked again."""
        found = self._capabilities.get((capability, served_by))
        if found is None:
            kind = CapabilityMetrics if self._is_on else NothingCounted
            found = self._capabilities[capability, served_by] = kind(self, capability, served_by)
        return found

    def breaker(self, name: str) -> "BreakerMetrics":
        """The metrics of one circuit breaker."""
        return BreakerMetrics(self, self.breaker_names.of(name))

    def watch(self, read: Callable[[], Iterable[Shown]]) -> None:
        """Have `read` called at every scrape, in a thread of its own, for what is derived from the runtime's state."""
        self.registry.register(_Derived(read))

    def _counts(self, metric: catalogue.Metric) -> Counts:
        family = Counts(metric, Count if self._is_on else NoCount)
        self._families.append(family)
        return family

    def _distributions(self, metric: catalogue.Metric) -> Distributions:
        make = Distribution if self._is_on else NoDistribution
        family = Distributions(metric, lambda: make(metric.buckets))
        self._families.append(family)
        return family

    def _shown(self) -> Iterator[Shown]:
        if not self._is_on:
            return
        for family in self._families:
            yield family.shown()
        yield self._digests()

    def _digests(self) -> GaugeMetricFamily:
        shown = gauge(catalogue.DIGEST_INFO)
        for (capability, served_by), metrics in self._capabilities.copy().items():
            for what, digest in metrics.digests.in_use():
                shown.add_metric([capability, served_by.version, what, digest], 1)
        return shown


class CapabilityMetrics:
    """The metrics of one capability, their labels looked up once. Use them on the event loop only."""

    def __init__(self, metrics: Metrics, capability: str, served_by: DecidedBy) -> None:
        self._metrics = metrics
        self._capability = capability
        self._served_by = served_by
        self.tasks = {status: metrics.tasks.of(capability, served_by.version, status) for status in Status}
        self.deadline_misses = metrics.deadline_misses.of(capability)
        self.queue_s = metrics.queue_s.of(capability)
        self.run_s = metrics.run_s.of(capability)
        self.commit_s = metrics.commit_s.of(capability)
        self.bid_to_start_s = metrics.bid_to_start_s.of(capability)
        self.handler_s = metrics.work_s.of(capability, "handler")
        self.mesh_s = metrics.work_s.of(capability, "mesh")
        self.redeliveries = metrics.redeliveries.of(capability)
        self.retries = metrics.retries.of(capability)
        self.retries_delayed = metrics.retries_delayed.of(capability)
        self.throttled = metrics.throttled.of(capability)
        self.revived = metrics.revived.of(capability)
        self.parks = metrics.parks.of(capability)
        self.wakes = metrics.wakes.of(capability)
        self.escalations = metrics.escalations.of(capability)
        self.handoffs = metrics.handoffs.of(capability)
        self.steps = _each(metrics.steps, "how", capability)
        self.duplicates = _each(metrics.duplicates, "at", capability)
        self._handed_back = _each(metrics.handed_back, "reason", capability)
        self._dead_letters = _each(metrics.dead_letters, "reason", capability)
        self.confidence = metrics.confidence.of(capability)
        self.decision_confidence = metrics.decision_confidence.of(capability)
        self.tokens_in = metrics.tokens.of(capability, "in")
        self.tokens_out = metrics.tokens.of(capability, "out")
        self.cost_usd = metrics.cost_usd.of(capability)
        self.digests = Digests()
        self._choices = Names(CHOICES_MAX)
        self._calls: dict[str, Count] = {}

    def answered(self, outcome: Outcome, *, commit_s: float, caller: str) -> None:
        """Count a task whose result this peer stored. `lineage` is its envelope's, commit_s how long storing took."""
        trace = self._metrics.exemplar()
        self.tasks[outcome.status].inc()
        self.queue_s.observe(outcome.queue_s, trace)
        self.run_s.observe(outcome.run_s, trace)
        self.commit_s.observe(commit_s, trace)
        self.called(caller)
        if outcome.status is Status.EXPIRED:
            self.deadline_misses.inc()
        if outcome.confidence is not None:
            self.confidence.observe(outcome.confidence)
        if outcome.spent is not None:
            self.spent(outcome.spent)
        if outcome.decided_by is not None:
            self._decided_by(outcome.decided_by)
        for one in outcome.decisions:
            self.decided(one.choice, one.confidence, model_digest=one.model_digest, prompt_digest=one.prompt_digest)

    def called(self, caller: str) -> None:
        """Count a task by who asked for it: a capability, or nobody."""
        count = self._calls.get(caller)
        if count is None:
            count = self._metrics.calls.of(self._caller(caller), self._capability)
            if len(self._calls) <= CALLERS_MAX:
                self._calls[caller] = count
        count.inc()

    def spent(self, spent: Spent) -> None:
        """Count what a task used up; what makes no sense is left out."""
        self.tokens_in.inc(max(0, spent.tokens_in))
        self.tokens_out.inc(max(0, spent.tokens_out))
        # What is not a number would make the whole sum none.
        if 0.0 < spent.usd < float("inf"):
            self.cost_usd.inc(spent.usd)

    def decided(
        self, choice: str, confidence: float | None = None, *, model_digest: str = "", prompt_digest: str = ""
    ) -> None:
        """Count a decision, once for each that is on record."""
        shown = self._choices.of(legible(choice, CHOICE_LENGTH_MAX))
        self._metrics.decisions.of(self._capability, shown).inc()
        if confidence is not None:
            self.decision_confidence.observe(confidence)
        self.digests.use(model=model_digest, prompt=prompt_digest)

    def worked(self, *, handler_s: float, mesh_s: float) -> None:
        """Count where the time of a delivery went."""
        self.handler_s.inc(handler_s)
        self.mesh_s.inc(mesh_s)

    def handed_back(self, reason: str) -> None:
        """Count a delivery that was given back, for one of the reasons in the catalogue."""
        self._handed_back[reason].inc()

    def dead_lettered(self, reason: str) -> None:
        """Count a task that was given up, for one of the reasons in the catalogue."""
        self._dead_letters[reason].inc()

    def _caller(self, name: str) -> str:
        """The label of whoever asked: a lineage is what the submitter says it is."""
        if not name:
            return CLIENT
        try:
            check_capability(name)
        except ContractError:
            return OTHERS
        return name if self._metrics.callers.has((name, self._capability)) else OTHERS

    def _decided_by(self, decided: DecidedBy) -> None:
        # Where somebody else answered in the end, it is not this agent that changed.
        if (decided.agent, decided.version) == (self._served_by.agent, self._served_by.version):
            self.digests.use(model=decided.model_digest, prompt=decided.prompt_digest)


class NothingCounted(CapabilityMetrics):
    """The metrics of a capability where nothing is counted per task."""

    def answered(self, outcome: Outcome, *, commit_s: float, caller: str) -> None:
        return

    def called(self, caller: str) -> None:
        return

    def spent(self, spent: Spent) -> None:
        return

    def worked(self, *, handler_s: float, mesh_s: float) -> None:
        return

    def decided(
        self, choice: str, confidence: float | None = None, *, model_digest: str = "", prompt_digest: str = ""
    ) -> None:
        return


class BreakerMetrics:
    """The metrics of one circuit breaker."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.refused = metrics.breaker_refused.of(name)
        self._calls = _each(metrics.breaker_calls, "how", name)
        self._transitions = _each(metrics.breaker_transitions, "to", name)

    def called(self, how: str) -> None:
        """Count a call, by what it came to."""
        self._calls[how].inc()

    def changed(self, to: str) -> None:
        """Count a change of its state that this peer decided."""
        self._transitions[to].inc()


class LimitMetrics:
    """The metrics of limits, by resource; resources without one are counted as `(none)`."""

    def __init__(
        self, wait_s: Distributions, granted: Counts, refused: Counts, *, trace: Callable[[], Trace | None]
    ) -> None:
        self._wait_s = wait_s
        self._granted = granted
        self._refused = refused
        self._trace = trace
        self._names = Names(NAMES_MAX)

    def granted(self, resource: str, waited_s: float) -> None:
        """Count a call that had its turn."""
        wait_s, granted, _ = self._of(resource)
        granted.inc()
        wait_s.observe(waited_s, self._trace())

    def refused(self, resource: str) -> None:
        """Count a call whose turn would have come too late."""
        _, _, refused = self._of(resource)
        refused.inc()

    def unlimited(self) -> None:
        """Count a call of a resource that has no limit."""
        self._granted.of(NO_LIMIT).inc()

    def _of(self, resource: str) -> tuple[Distribution, Count, Count]:
        shown = self._names.of(resource)
        return self._wait_s.of(shown), self._granted.of(shown), self._refused.of(shown)


class _Derived(Collector):
    def __init__(self, read: Callable[[], Iterable[Shown]]) -> None:
        self._read = read

    def describe(self) -> list[Shown]:
        return []

    def collect(self) -> Iterable[Shown]:
        for _ in range(READ_AGAIN_TIMES):
            # The event loop goes on meanwhile, and may add to what is being gone through.
            with suppress(RuntimeError):
                return list(self._read())
        return list(self._read())


def _each(family: Counts, last_label: str, *labels: str) -> dict[str, Count]:
    """The cells for all values of a closed last label: shown at zero, a first one counts as an increase."""
    assert family.metric.labels[-1] == last_label, family.metric.name
    return {value: family.of(*labels, value) for value in family.metric.values[last_label]}


def distribution_version() -> str:
    """The installed version of Starling, `0` from a bare checkout."""
    try:
        return version("starling-mesh")
    except PackageNotFoundError:
        return "0"
