"""A peer's look at the mesh as a whole: queues, streams, parks, dead letters, and what waits for people.

What it sees are gauges, so that a scrape asks nobody. Rules.

- A peer looks every `survey_s` seconds, give or take a quarter, so that many peers do not look at once.
- The server answers what a consumer or a stream holds at once. Counting the subjects that a filter matches holds it up
  for a third of a second per million, and publishers with it: all peers together may take a share of its time, and
  where a count is dear each looks the more seldom.
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
from mesh.errors import BusError
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
"""Of the server's time, what all peers together may take for one count that they all make."""
SELDOM_S_MAX: Final = 600.0
STALE_SLACK_S: Final = 10.0


def again_after_s(took_s: float, *, peers: int, every_s: float) -> float:
    """In how many seconds to ask again for what took the server `took_s` seconds, when so many peers ask for it."""
    return max(every_s, min(SELDOM_S_MAX, took_s * peers / SHARE))


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

    ask: Callable[[], Awaitable[T]]
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
        self._round_trip_s = 0.0
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
        # The first one tells how long the way to the server is, whatever it has to do there.
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
        every_s, began = self._host.settings.survey_s, time.monotonic()
        try:
            look.answer = await look.ask()
            look.answered_at = time.monotonic()
        finally:
            # What the server did not manage to answer was dear as well.
            took_s = max(0.0, time.monotonic() - began - self._round_trip_s) if look.is_counting else 0.0
            look.again_s = again_after_s(took_s, peers=self._live_peers(), every_s=every_s)
            if look.again_s > every_s:
                look.due_at = time.monotonic() + look.again_s

    def _counting(self, filter_subject: str) -> Look[int]:
        return Look(lambda: topology.count(self._host.bus, filter_subject), is_counting=True)

    async def _ask_streams(self) -> Mapping[str, Stream]:
        found: dict[str, Stream] = {}
        for spec in topology.streams(self._host.settings):
            began = time.monotonic()
            info = await topology.inspect(self._host.bus, spec)
            self._round_trip_s = time.monotonic() - began
            if info is not None:
                state, config = info["state"], info["config"]
                found[spec.name] = Stream(
                    state["bytes"], state["messages"], config.get("max_bytes", -1), config.get("max_msgs", -1)
                )
        return found

    async def _ask_queues(self) -> Mapping[tuple[str, str], Queue]:
        found: dict[tuple[str, str], Queue] = {}
        for capability in self._capabilities:
            for lane in ORDER:
                spec = topology.consumer(self._host.settings, capability, lane)
                info = await topology.inspect(self._host.bus, spec)
                if info is not None:
                    bound = bound_of(info["config"])
                    found[capability, lane] = Queue(info["num_pending"], info["num_ack_pending"], bound)
        return found

    async def _ask_unserved(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        waiting = await topology.unserved(self._host.bus, capabilities_max=catalogue.UNSERVED_MAX)
        for name, count in waiting.items():
            shown = name if _is_capability(name) else catalogue.OTHERS
            found[shown] = found.get(shown, 0) + count
        return found

    async def _ask_inbox(self) -> Mapping[Identity, float]:
        self._inbox_since = await waiting_since(self._host.bus, self._inbox_since)
        return self._inbox_since


def _is_capability(consumer: str) -> bool:
    """Whether a queue, named as its consumer would be, is one that somebody could serve."""
    try:
        check_capability(consumer.partition("@")[0])
    except ContractError:
        return False
    return True
