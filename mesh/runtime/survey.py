"""A peer's look at the mesh as a whole: queues, streams, parks, dead letters, and what waits for people.

What it sees are gauges, so that a scrape asks nobody. Rules.

- A peer looks every `survey_s` seconds, give or take a quarter, so that many peers do not look at once.
- The server tells at once what a consumer or a stream holds. Counting the subjects that a filter matches holds it up
  for 0.4 s per million, and publishers with it; listing them takes three times as long. So all peers together may take
  a share of its time: the more there was to count and the more peers ask, the more seldom each does.
- What was not seen again for long is not shown, and without a connection nothing but the age of the last look is.
- Every right it needs a peer has anyway: `STREAM.INFO` of the mesh's streams, `CONSUMER.INFO` and `CONSUMER.NAMES` of
  its tasks', and reading single records by subject.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from prometheus_client.core import Metric as Shown

from contracts.errors import ContractError
from contracts.subjects import Identity, check_capability
from mesh.bus import topology
from mesh.bus.queues import bound_of
from mesh.endings import HUMAN
from mesh.errors import BusError, PublishUnconfirmed
from mesh.runtime.host import Host
from mesh.scheduling.lanes import ORDER
from mesh.telemetry import catalogue
from mesh.telemetry.cells import gauge
from mesh.workflow.inbox import waiting_since

log = logging.getLogger("mesh.runtime")

T = TypeVar("T")

JITTER: Final = 0.25
FIRST_WITHIN_S: Final = 1.0
SHARE: Final = 0.02
"""Of the server's time, what all peers together may take for one question that they all ask."""
COUNTED_S: Final = 1e-6
"""What a subject that is counted takes the server, generously."""
LISTED_S: Final = 4e-6
"""What one takes that is listed, the loop of whoever reads it included."""
SELDOM_S_MAX: Final = 600.0
UNANSWERED_AGAIN_S: Final = 60.0
STALE_SLACK_S: Final = 10.0


def again_after_s(cost_s: float, *, peers: int, every_s: float) -> float:
    """In how many seconds to ask again for what takes the server so long, when so many peers ask for it."""
    return max(every_s, min(SELDOM_S_MAX, cost_s * peers / SHARE))


@dataclass(frozen=True, slots=True)
class Queue:
    """One lane of a capability: what waits, what is handed out, and how many may wait; 0 for no bound."""

    waiting: int
    unacked: int
    bound: int


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream holds, and may hold; -1 for no limit."""

    bytes: int
    messages: int
    bytes_max: int
    messages_max: int


@dataclass(slots=True)
class Look(Generic[T]):
    """One question that is asked again and again, and the last answer."""

    ask: Callable[[], Awaitable[tuple[T, float]]]
    """The answer, and how many seconds of the server's time it took."""
    is_counting: bool = False
    """Whether the server has to count for it."""
    answer: T | None = None
    answered_at: float = 0.0
    again_s: float = 0.0
    due_at: float = 0.0

    def shown(self) -> T | None:
        """The last answer, unless it is too old to be shown."""
        is_fresh = time.monotonic() - self.answered_at < 2 * self.again_s + STALE_SLACK_S
        return self.answer if is_fresh else None


class Survey:
    """What one peer sees of the mesh, for the capabilities it serves."""

    def __init__(self, host: Host, capabilities: Sequence[str], *, live_peers: Callable[[], int]) -> None:
        self._host = host
        self._capabilities = tuple(capabilities)
        self._live_peers = live_peers
        self._looked_at: float | None = None
        self._inbox_since: Mapping[Identity, float] = {}
        subjects = host.bus.subjects
        self._streams = Look(self._ask_streams)
        self._queues = Look(self._ask_queues)
        self._parked = {name: self._counting(subjects.parks_of(name)) for name in self._capabilities}
        self._dead = {name: self._counting(subjects.dead_letters_of(name)) for name in self._capabilities}
        self._unserved = Look(self._ask_unserved, is_counting=True)
        self._inbox = Look(self._ask_inbox, is_counting=True)

    async def keep(self) -> None:
        """Look for ever."""
        every_s = self._host.settings.survey_s
        self._looked_at = time.monotonic()
        await asyncio.sleep(random.uniform(0.0, min(FIRST_WITHIN_S, every_s)))  # noqa: S311  # spreads load
        while True:
            try:
                await self.look()
            except (BusError, ContractError) as error:
                log.info("the mesh was not looked at: %s", error)
            await asyncio.sleep(every_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  # spreads load

    async def look(self) -> None:
        """Ask what is due.

        Raises:
            BusError: the server does not say; what was asked before stands.
        """
        await self._ask(self._streams)
        await self._ask(self._queues)
        for look in (*self._parked.values(), *self._dead.values()):
            await self._ask(look)
        await self._ask(self._unserved)
        if HUMAN in self._capabilities:
            await self._ask(self._inbox)
        self._looked_at = time.monotonic()

    def read(self) -> Iterator[Shown]:
        """The gauges of the mesh as they were seen last; in the thread of a scrape."""
        if (looked_at := self._looked_at) is not None:
            yield gauge(catalogue.SURVEY_AGE_S, time.monotonic() - looked_at)
        if not self._host.bus.is_connected:
            return
        yield from self._queue_gauges()
        yield from self._stream_gauges()
        for metric, looks in ((catalogue.PARKED_TASKS, self._parked), (catalogue.DEAD_LETTERS_KEPT, self._dead)):
            shown = gauge(metric)
            for capability, look in looks.items():
                if (count := look.shown()) is not None:
                    shown.add_metric([capability], count)
            yield shown
        unserved = gauge(catalogue.UNSERVED_TASKS)
        for name, count in (self._unserved.shown() or {}).items():
            unserved.add_metric([name], count)
        yield unserved
        if (since := self._inbox.shown()) is not None:
            yield gauge(catalogue.INBOX_WAITING, len(since))
            yield gauge(catalogue.INBOX_OLDEST_S, max(0.0, time.time() - min(since.values(), default=time.time())))

    def _queue_gauges(self) -> Iterator[Shown]:
        waiting, unacked = gauge(catalogue.QUEUE_TASKS), gauge(catalogue.UNACKED_TASKS)
        most = gauge(catalogue.QUEUE_MAX_TASKS)
        for (capability, lane), queue in (self._queues.shown() or {}).items():
            labels = [capability, lane or "normal"]
            waiting.add_metric(labels, queue.waiting)
            unacked.add_metric(labels, queue.unacked)
            if queue.bound:
                most.add_metric(labels, queue.bound)
        yield from (waiting, unacked, most)

    def _stream_gauges(self) -> Iterator[Shown]:
        held, most = gauge(catalogue.STREAM_BYTES), gauge(catalogue.STREAM_BYTES_MAX)
        messages, messages_max = gauge(catalogue.STREAM_MESSAGES), gauge(catalogue.STREAM_MESSAGES_MAX)
        for name, stream in (self._streams.shown() or {}).items():
            held.add_metric([name], stream.bytes)
            messages.add_metric([name], stream.messages)
            if stream.bytes_max > 0:
                most.add_metric([name], stream.bytes_max)
            if stream.messages_max > 0:
                messages_max.add_metric([name], stream.messages_max)
        yield from (held, most, messages, messages_max)

    # Questions.

    async def _ask(self, look: Look[T]) -> None:
        if time.monotonic() < look.due_at:
            return
        every_s = self._host.settings.survey_s
        try:
            look.answer, cost_s = await look.ask()
        except PublishUnconfirmed:
            # What the server does not manage to answer may be what keeps it busy.
            look.due_at = time.monotonic() + (UNANSWERED_AGAIN_S if look.is_counting else 0.0)
            raise
        look.answered_at = time.monotonic()
        look.again_s = again_after_s(cost_s, peers=self._live_peers(), every_s=every_s)
        look.due_at = look.answered_at + look.again_s if look.again_s > every_s else 0.0

    def _counting(self, filter_subject: str) -> Look[int]:
        async def ask() -> tuple[int, float]:
            count = await topology.count(self._host.bus, filter_subject)
            return count, count * COUNTED_S

        return Look(ask, is_counting=True)

    async def _ask_streams(self) -> tuple[Mapping[str, Stream], float]:
        found: dict[str, Stream] = {}
        settings = self._host.settings
        own_timers = (topology.timers(settings, capability) for capability in self._capabilities)
        for spec in (*topology.streams(settings), *own_timers):
            info = await topology.inspect(self._host.bus, spec)
            if info is not None:
                state, config = info["state"], info["config"]
                found[spec.name] = Stream(
                    state["bytes"], state["messages"], config.get("max_bytes", -1), config.get("max_msgs", -1)
                )
        return found, 0.0

    async def _ask_queues(self) -> tuple[Mapping[tuple[str, str], Queue], float]:
        found: dict[tuple[str, str], Queue] = {}
        for capability in self._capabilities:
            for lane in ORDER:
                spec = topology.consumer(self._host.settings, capability, lane)
                info = await topology.inspect(self._host.bus, spec)
                if info is not None:
                    bound = bound_of(info["config"])
                    found[capability, lane] = Queue(info["num_pending"], info["num_ack_pending"], bound)
        return found, 0.0

    async def _ask_unserved(self) -> tuple[Mapping[str, int], float]:
        consumers = await topology.served(self._host.bus)
        standing = await topology.standing(self._host.bus)
        found: dict[str, int] = {}
        for name, count in topology.left_over(standing, consumers, capabilities_max=catalogue.UNSERVED_MAX).items():
            shown = name if _is_capability(name) else catalogue.OTHERS
            found[shown] = found.get(shown, 0) + count
        return found, sum(standing.values()) * LISTED_S

    async def _ask_inbox(self) -> tuple[Mapping[Identity, float], float]:
        self._inbox_since = await waiting_since(self._host.bus, self._inbox_since)
        answered = await topology.count(self._host.bus, self._host.bus.subjects.results_of(HUMAN))
        return self._inbox_since, (len(self._inbox_since) + answered) * LISTED_S


def _is_capability(consumer: str) -> bool:
    """Whether a queue, named as its consumer would be, is one that somebody could serve."""
    try:
        check_capability(consumer.partition("@")[0])
    except ContractError:
        return False
    return True
