"""What all capabilities of one peer share."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts import wire
from contracts.control import Runs, WhoRuns
from contracts.decision import Decision, dated
from contracts.event import EventKind
from contracts.objects import Kept
from contracts.subjects import SESSION, Identity, in_line
from contracts.task import Sender, Task
from mesh.bus.connection import REPLY_WITHIN_S, Bus
from mesh.bus.lines import RESULT_S_MIN, Mark
from mesh.bus.objects import readable_payload
from mesh.bus.pull import Delivery
from mesh.bus.records import RETRY_S
from mesh.bus.replies import ApiError
from mesh.capability import Capability
from mesh.context import BlockingContext, Context
from mesh.errors import BusUnavailable, PublishUnconfirmed
from mesh.resilience.budget import RetryBudget
from mesh.runtime.answered import Answered
from mesh.runtime.breakers import Breakers, Guarded
from mesh.runtime.controls import Controls
from mesh.runtime.events import Events
from mesh.runtime.heartbeat import Heartbeat
from mesh.runtime.lag import Lag
from mesh.scheduling.bids import Offer
from mesh.settings import Settings
from mesh.telemetry.metrics import CapabilityMetrics, Metrics
from mesh.telemetry.tracing import NO_SPAN, OFF, Span, Tracing
from mesh.workflow.durable import DurableContext, Services
from mesh.workflow.flow import Flow
from mesh.workflow.slots import Slot

NOTHING_TRUSTED = 2**63
FINISHED_PARTS_MAX = 10_000
ROOT_SLACK_S = 3_600.0
"""How much longer than the records below it a root's result is kept."""
SURVEY_S = 0.5


@dataclass(slots=True)
class Attempt:
    """One task in the hands of this peer.

    `delivery` is the latest hand-over of it, `row` its heartbeat's. A woken task's delivery has the wake's ack and
    the park's content.
    """

    identity: Identity
    capability: Capability[Any, Any, Any]
    metrics: CapabilityMetrics
    me: Sender
    delivery: Delivery
    row: int
    slot: Slot
    illegal_id: str = ""
    is_wake: bool = False
    task: Task = field(default_factory=Task)
    payload: bytes = b""
    """What the task asks with, once its handler is to be run."""
    number: int = 1
    started_at: float = 0.0
    context: Context | BlockingContext | None = None
    fiber: asyncio.Task[None] | None = None
    scope: asyncio.Timeout | None = None
    flow: Flow | None = None
    is_cancelled: bool = False
    is_unwinding: bool = False
    payload_class: str = ""
    has_records: bool = False
    """Whether a record below the task may exist: a child, a step, a park."""
    is_early: bool = False
    """Whether it stands in a line, and it is not known that its turn has come."""
    guarded: Guarded = field(default_factory=Guarded)
    decided_before: tuple[Decision, ...] = ()
    """What the last run that is on record had decided when it ended."""
    slot_at: float = 0.0
    """When it had its slot, by the clock of `time.perf_counter`; 0 before."""
    ran_s: float = 0.0
    """How long its handler ran, waits included."""
    handler_s: float = 0.0
    """How much of that it held its slot, and did not wait for its turn at a limit."""
    span: Span = NO_SPAN
    """The run's, from just before its handler runs until the delivery is settled."""
    mark: Mark | None = None
    """How far its line had come when it was looked at."""

    @property
    def has_model_spans(self) -> bool:
        """Whether requests to models have spans of their own below the run's."""
        return self.context is not None and self.context.has_model_spans

    @property
    def kept(self) -> Kept | None:
        """Where the payload is, if it does not travel in the task's message."""
        return readable_payload(self.delivery.headers, self.delivery.payload, self.identity)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What its handler decided, in the runs that are known here."""
        return self.decided_here or self.decided_before

    @property
    def decided_here(self) -> tuple[Decision, ...]:
        """What the run in this peer decided; what an earlier one decided, too, has the time that it had."""
        return dated(self.context.decisions, self.decided_before) if self.context is not None else ()

    @property
    def held_s(self) -> float:
        """How long it held a slot since it was started, in seconds."""
        return self.flow.held_s if self.flow is not None else time.time() - self.started_at

    def runs_until(self, settings: Settings) -> float:
        """Until when the task may still be run: what it rests on may have expired after that."""
        is_workflow = self.is_wake or self.task.keep_until is not None
        return self.keep_until(settings) if is_workflow else self.delivery.stored_at + self.result_ttl_s(settings)

    def keep_until(self, settings: Settings) -> float:
        """Until when the records of the task's workflow are kept, as Unix seconds."""
        if self.task.keep_until is not None:
            return self.task.keep_until
        return self.delivery.stored_at + max(settings.workflow_ttl_s, self._own_ttl_s(settings))

    def result_ttl_s(self, settings: Settings) -> float:
        """How long the result of this task is kept.

        A root's outlives everything below it, or a later task under its key would find old records.
        """
        left_s = self.keep_until(settings) - time.time()
        if self.task.keep_until is not None and not self._is_root:
            return max(1.0, left_s)
        own_s = self._own_ttl_s(settings)
        has_records = self.has_records or (isinstance(self.context, DurableContext) and self.context.has_records)
        return max(own_s, left_s + ROOT_SLACK_S) if has_records else own_s

    def ledger_ttl_s(self, settings: Settings) -> float:
        """How long what tells of the task's attempts is kept: as long as it may go on."""
        own_s = self._own_ttl_s(settings)
        return max(own_s, self.keep_until(settings) - time.time()) if self.capability.is_durable else own_s

    def _own_ttl_s(self, settings: Settings) -> float:
        return own_ttl_s(settings, self.capability, self.identity)

    @property
    def _is_root(self) -> bool:
        return all(ancestor == SESSION for ancestor in self.task.lineage)

    def cancel(self) -> None:
        """End the handler: its scope times out now, and the attempt knows why. What undoes is not ended."""
        if self.is_unwinding:
            return
        self.is_cancelled = True
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())


def own_ttl_s(settings: Settings, capability: Capability[Any, Any, Any], task: Identity) -> float:
    """How long the result of a task is kept that has no records below it."""
    own_s = capability.limits.result_ttl_s or settings.result_ttl_s
    return own_s if in_line(task) is None else max(own_s, RESULT_S_MIN)


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a finished attempt streamed."""

    attempt: int
    parts: Sequence[tuple[int, Any]]


@dataclass(slots=True)
class Host:
    """The peer as its capabilities see it."""

    bus: Bus
    settings: Settings
    peer: str
    metrics: Metrics
    controls: Controls
    breakers: Breakers
    heartbeat: Heartbeat
    services: Services
    events: Events
    offers_of: Callable[[str], Iterable[Offer]]
    """What other peers that take work of a capability offer, as they told lately."""
    tracing: Tracing = OFF
    lag: Lag = field(default_factory=Lag)
    answered: Answered = field(default_factory=Answered)
    waiting: OrderedDict[Identity, Attempt] = field(default_factory=OrderedDict)
    """Those of `running` that wait and hold no slot, the longest wait first."""
    is_draining: bool = False
    retries: RetryBudget = field(init=False)
    running: dict[Identity, Attempt] = field(default_factory=dict)
    trusted_above: int = NOTHING_TRUSTED
    """First deliveries of guarded messages stored after this sequence need no look for a record."""
    trust_round: int = 0
    """How often trust was lost until now."""
    _surveyed: asyncio.Event = field(default_factory=lambda: _set(asyncio.Event()))
    _elsewhere: dict[Identity, str] = field(default_factory=dict)
    _elsewhere_until: float = 0.0
    _finished: OrderedDict[Identity, Streamed] = field(default_factory=OrderedDict)
    _parts_kept: int = 0

    def __post_init__(self) -> None:
        self.retries = RetryBudget(self.settings.retry_share)

    def waits(self, attempt: Attempt, is_waiting: bool) -> None:
        """Take note that a running task begins or ends to wait. Those that wait longest park when there are many."""
        if not is_waiting:
            self.waiting.pop(attempt.identity, None)
            return
        self.waiting[attempt.identity] = attempt
        if self.is_draining and attempt.flow is not None:
            attempt.flow.hurry()
        elif len(self.waiting) > self.settings.hot_waits_max:
            for oldest in self.waiting.values():
                if oldest.flow is not None and oldest.flow.is_waiting:
                    oldest.flow.park()
                    break

    def park_waiting(self) -> None:
        """Have everything that waits leave this peer, as soon as it may."""
        for attempt in list(self.waiting.values()):
            if attempt.flow is not None:
                attempt.flow.hurry()

    def keep_parts(self, attempt: Attempt) -> None:
        """Keep what a finished attempt streamed, for listeners who come late; the oldest goes first."""
        if attempt.context is None or not attempt.context.parts_emitted:
            return
        earlier = self._finished.pop(attempt.identity, None)
        self._finished[attempt.identity] = Streamed(attempt.number, attempt.context.parts)
        self._parts_kept += len(attempt.context.parts) - (len(earlier.parts) if earlier is not None else 0)
        while self._parts_kept > FINISHED_PARTS_MAX:
            _, oldest = self._finished.popitem(last=False)
            self._parts_kept -= len(oldest.parts)

    def parts_of(self, task: Identity, attempt: int) -> Sequence[tuple[int, Any]]:
        """Streamed parts of an attempt that are kept here, each with its sequence."""
        running = self.running.get(task)
        if running is not None and running.number == attempt and running.context is not None:
            return tuple(running.context.parts)
        finished = self._finished.get(task)
        return tuple(finished.parts) if finished is not None and finished.attempt == attempt else ()

    async def tell(self, kind: EventKind, task: Identity | None = None, detail: str = "") -> None:
        """Publish a lifecycle event; see `mesh.runtime.events`."""
        await self.events.tell(kind, task, detail)

    def cancel_running(self) -> None:
        """End what runs here and was cancelled meanwhile."""
        for attempt in self.running.values():
            if not attempt.is_cancelled and self.controls.cancel_of(attempt.identity, attempt.task.lineage):
                attempt.cancel()

    def distrust(self) -> None:
        """Look for a record before every run, until `learn_watermark` and `survey` have been called again."""
        self.trusted_above = NOTHING_TRUSTED
        self.trust_round += 1
        self._surveyed.clear()

    async def survey(self) -> None:
        """Once distrusted, ask every peer what it runs: what the server forgot to have delivered then runs once.

        After a broker's crash a message in flight may come again and look new. A peer that reconnects later than
        this one asks is not heard; what it runs may then be run beside it, and one of the two commits.
        """
        if self._surveyed.is_set():
            return
        asked_in = self.trust_round
        question = wire.encode(WhoRuns())
        answers = await self.bus.gather(self.bus.subjects.ctl("all", "who-runs"), question, within_s=SURVEY_S)
        self._elsewhere = {
            Identity(task.capability, task.id): runs.peer
            for runs in wire.readable(Runs, answers)
            for task in runs.running
            if runs.peer != self.peer
        }
        self._elsewhere_until = time.monotonic() + self.settings.ack_wait_s
        if asked_in == self.trust_round:
            self._surveyed.set()

    async def runs_elsewhere(self, task: Identity) -> str:
        """The peer that ran a task at the last survey, if that was lately. Waits for a survey that is due."""
        await self._surveyed.wait()
        return self._elsewhere.get(task, "") if time.monotonic() < self._elsewhere_until else ""

    async def learn_watermark(self) -> None:
        """Trust first deliveries of what is stored from now on.

        After a broker's crash, messages that were acked before it may come again and look new; those stored
        after we connected cannot have been acked by anyone before.
        """
        while True:
            asked_in = self.trust_round
            try:
                stream = self.bus.subjects.stream
                info: dict[str, Any] = await self.bus.api(f"STREAM.INFO.{stream}", within_s=REPLY_WITHIN_S)
            except (ApiError, BusUnavailable, PublishUnconfirmed):
                await self.bus.until_connected()
                await asyncio.sleep(RETRY_S)
                continue
            if asked_in == self.trust_round:
                self.trusted_above = info["state"]["last_seq"]
                return


def _set(event: asyncio.Event) -> asyncio.Event:
    event.set()
    return event
