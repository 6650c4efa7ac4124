"""A peer process of the benchmark. Its handlers sleep for the work they are given.

    python -m ops.bench.scheduling.peers URL NUMBER FAMILIES

It hosts one `Peer` for the policies with bids and one for those without, on two meshes of one server. A *family* is
one fleet under one policy and has capabilities of its own, so that runs share nothing but the process. Every second
it tells how many tasks of each family it holds; it takes orders, to let go of a run's tasks and to join or leave.
"""

import asyncio
import selectors
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import nats
from nats.aio.msg import Msg

from mesh import Agent
from mesh.fibers import serving
from mesh.settings import Settings
from mesh.testing.hosting import hosting
from ops.bench.scheduling.fleets import FLEETS, Fleet
from ops.bench.scheduling.policies import POLICIES, Policy

BEAT_S = 1.0
BEATS = "bench.beat"
ORDERS = "bench.order"
TIMEOUT_S = 600.0
RESULT_TTL_S = 60.0
SWEEP_S = 600.0
STREAM_BYTES_MAX = 2**30


class Work(msgspec.Struct, frozen=True):
    """What a task is to do: sleep. `run_began_s` is on the clock of `loop.time()`, one for all processes."""

    run: str
    run_began_s: float
    seconds: float


class Ran(msgspec.Struct, frozen=True):
    """Who did it, and by how many seconds the timer was late."""

    peer: int
    late_s: float


class Beat(msgspec.Struct, frozen=True):
    """Tasks in a peer, queued and running, by the families it serves."""

    peer: int
    held: dict[str, int]


class Order(msgspec.Struct, frozen=True):
    """To all peer processes: `end` names a run, the others a family."""

    verb: Literal["end", "join", "leave"]
    name: str


@dataclass(frozen=True, slots=True)
class Family:
    """One fleet under one policy."""

    fleet: Fleet
    policy: Policy

    @property
    def name(self) -> str:
        return f"{self.fleet.name}-{self.policy.name}"

    def capability(self, peer: int) -> str:
        return f"{self.name}-{peer}" if self.policy.has_inboxes else self.name


def family_of(name: str) -> Family:
    fleet, _, policy = name.partition("-")
    return Family(FLEETS[fleet], POLICIES[policy])


def settings_of(url: str, *, is_bidding: bool) -> Settings:
    """Of a peer or of a submitter."""
    values: dict[str, Any] = {
        "nats_url": url,
        "prefix": "bids" if is_bidding else "plain",
        "bids": is_bidding,
        "result_ttl_s": RESULT_TTL_S,
        "sweep_s": SWEEP_S,
        "stream_bytes_max": STREAM_BYTES_MAX,
        "http_port": -1,
    }
    return Settings(**values)


def run_precisely(main: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop whose timers are exact: epoll waits whole milliseconds, select waits microseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main)


class PeerProcess:
    """One of the eight."""

    def __init__(self, url: str, number: int) -> None:
        self._url = url
        self._number = number
        self._held: Counter[str] = Counter()
        self._served: set[str] = set()
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._left: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._changed = asyncio.Event()

    async def run(self, families: Sequence[Family]) -> None:
        """Serve until killed."""
        connection = await nats.connect(self._url)
        at_first = [family for family in families if self._number < family.fleet.at_first]
        async with AsyncExitStack() as stack:
            for is_bidding in (True, False):
                if mine := [family for family in at_first if family.policy.is_bidding == is_bidding]:
                    await stack.enter_async_context(self._serving(mine))
            fibers = await stack.enter_async_context(serving())

            async def ordered(message: Msg) -> None:
                match msgspec.json.decode(message.data, type=Order):
                    case Order("end", run):
                        self._ended[run].set()
                    case Order("join", name) if name not in self._served and family_of(name) not in at_first:
                        fibers.create_task(self._join(family_of(name)))
                    case Order("leave", name):
                        self._left[name].set()

            await connection.subscribe(ORDERS, cb=ordered)
            while True:
                held = {name: self._held[name] for name in self._served}
                await connection.publish(BEATS, msgspec.json.encode(Beat(self._number, held)))
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await self._changed.wait()

    async def _join(self, family: Family) -> None:
        left = self._left[family.name] = asyncio.Event()
        async with self._serving([family]):
            await left.wait()

    @asynccontextmanager
    async def _serving(self, families: Sequence[Family]) -> AsyncIterator[None]:
        agent = Agent("bench")
        for family in families:
            self._declare(agent, family)
        names = {family.name for family in families}
        async with hosting(agent, settings=settings_of(self._url, is_bidding=families[0].policy.is_bidding)):
            self._served |= names
            self._changed.set()
            try:
                yield
            finally:
                self._served -= names
                self._changed.set()

    def _declare(self, agent: Agent, family: Family) -> None:
        fleet, slots = family.fleet, asyncio.Semaphore(family.fleet.slots)

        @agent.handles(
            family.capability(self._number), concurrency=family.policy.concurrency(fleet.slots), timeout_s=TIMEOUT_S
        )
        async def work(task: Work) -> Ran:
            loop = asyncio.get_running_loop()
            ended = self._ended[task.run]
            self._held[family.name] += 1
            try:
                async with slots:
                    began_s = loop.time()
                    seconds = task.seconds * fleet.slowness(self._number, began_s - task.run_began_s)
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(began_s + seconds):
                            await ended.wait()
                    return Ran(self._number, loop.time() - began_s - seconds)
            finally:
                self._held[family.name] -= 1


if __name__ == "__main__":
    url, number, names = sys.argv[1:]
    run_precisely(PeerProcess(url, int(number)).run([family_of(name) for name in names.split(",")]))
