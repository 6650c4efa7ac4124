"""The submitter: one run of a trace under a policy, open loop, on peers that stay up from run to run."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Mesh
from mesh.fibers import serving
from ops.bench.scheduling.figures import Percentiles, percentiles
from ops.bench.scheduling.fleets import PEERS, Trace
from ops.bench.scheduling.peers import BEATS, ORDERS, Beat, Family, Order, Ran, Work, settings_of
from ops.bench.scheduling.policies import pick

WARM_UP_S = 1.5
GRACE_S = 4.0
UP_WITHIN_S = 60.0
BEGINS_IN_S = 0.05


@dataclass(slots=True)
class Run:
    """What came of one trace; times in seconds from the begin of the run."""

    trace: Trace
    ends_s: list[float]
    unfinished: int = 0
    """Tasks still out `GRACE_S` after the last arrival; they count as ended then, so percentiles are lower bounds."""
    peers: list[int | None] = field(default_factory=list)
    timers_late_s: list[float] = field(default_factory=list)
    submits_late_s: list[float] = field(default_factory=list)

    def sojourns_s(self) -> list[float]:
        return [end_s - arrival_s for end_s, arrival_s in zip(self.ends_s, self.trace.arrivals_s, strict=True)]

    def ends_by_peer(self) -> list[tuple[float, int]]:
        return [(at_s, peer) for at_s, peer in zip(self.ends_s, self.peers, strict=True) if peer is not None]


def measured(trace: Trace, sojourns_s: Sequence[float]) -> Percentiles:
    """Of the tasks that came after the warm-up."""
    return percentiles(
        [sojourn_s for arrival_s, sojourn_s in zip(trace.arrivals_s, sojourns_s, strict=True) if arrival_s >= WARM_UP_S]
    )


@contextmanager
def peer_processes(url: str, families: Sequence[Family]) -> Iterator[None]:
    """Eight peer processes until left."""
    names = ",".join(family.name for family in families)
    processes = [
        subprocess.Popen([sys.executable, "-m", "ops.bench.scheduling.peers", url, str(number), names])
        for number in range(PEERS)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


class Submitter:
    """Runs traces. Made by `Submitter.connect()`."""

    def __init__(self, connection: Client, bidding: Mesh, plain: Mesh) -> None:
        self._connection = connection
        self._meshes = {True: bidding, False: plain}
        self._told: dict[int, dict[str, int]] = {}
        self._heard = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator["Submitter"]:
        """A submitter until left."""
        async with AsyncExitStack() as stack:
            bidding, plain = [
                await stack.enter_async_context(Mesh.connect(settings=settings_of(url, is_bidding=is_bidding)))
                for is_bidding in (True, False)
            ]
            connection = await nats.connect(url)
            stack.push_async_callback(connection.close)
            submitter = cls(connection, bidding, plain)
            await connection.subscribe(BEATS, cb=submitter._told_by)
            yield submitter

    async def until_up(self, families: Sequence[Family]) -> None:
        """Until every peer that is there from the first serves each family.

        Raises:
            TimeoutError: not within `UP_WITHIN_S`.
        """
        async with asyncio.timeout(UP_WITHIN_S):
            for family in families:
                while len(self._serving(family)) < family.fleet.at_first:
                    await self._beat()

    async def run(self, family: Family, trace: Trace, *, name: str) -> Run:
        """Submit each task at its time and wait for all, at most `GRACE_S` longer than the last arrival."""
        loop = asyncio.get_running_loop()
        began_s = loop.time() + BEGINS_IN_S
        count = len(trace.arrivals_s)
        run = Run(trace, [0.0] * count, peers=[None] * count)
        mesh = self._meshes[family.policy.is_bidding]
        dice, out = Random(name), Counter[int]()
        left, all_done = count, asyncio.Event()

        async def one(number: int, capability: str, inbox: int) -> None:
            nonlocal left
            work = Work(name, began_s, trace.works_s[number])
            ran = await (await mesh.submit(capability, work, returns=Ran)).result()
            out[inbox] -= 1
            left -= 1
            if not left:
                all_done.set()
            if not run.unfinished:
                run.ends_s[number] = loop.time() - began_s
                run.peers[number] = ran.peer
                run.timers_late_s.append(ran.late_s)

        async with asyncio.TaskGroup() as tasks, serving(self._joining(family, began_s)):
            for number, arrival_s in enumerate(trace.arrivals_s):
                await asyncio.sleep(began_s + arrival_s - loop.time())
                run.submits_late_s.append(loop.time() - began_s - arrival_s)
                inbox = self._inbox(family, number, out, dice) if family.policy.has_inboxes else 0
                out[inbox] += 1
                tasks.create_task(one(number, family.capability(inbox), inbox))
            try:
                async with asyncio.timeout(GRACE_S):
                    await all_done.wait()
            except TimeoutError:
                run.unfinished = left
                run.ends_s = [end_s or loop.time() - began_s for end_s in run.ends_s]
                await self._order(Order("end", name))
            await all_done.wait()
        return run

    async def _joining(self, family: Family, began_s: float) -> None:
        """Let the other peers come when it is time for them, and leave in the end."""
        if family.fleet.at_first == PEERS:
            return
        try:
            await asyncio.sleep(began_s + family.fleet.joins_at_s - asyncio.get_running_loop().time())
            await self._order(Order("join", family.name))
            await asyncio.Event().wait()
        finally:
            await self._order(Order("leave", family.name))

    async def until_left(self, family: Family) -> None:
        """Until only those peers serve a family that are there from the first."""
        async with asyncio.timeout(UP_WITHIN_S):
            while len(self._serving(family)) > family.fleet.at_first:
                await self._beat()

    def _inbox(self, family: Family, turn: int, out: Counter[int], dice: Random) -> int:
        told = self._serving(family)
        return pick(family.policy.name, sorted(told), turn=turn, told=told, out=out, dice=dice)

    def _serving(self, family: Family) -> dict[int, int]:
        """Tasks in each peer that serves a family, by its last heartbeat."""
        return {peer: held[family.name] for peer, held in self._told.items() if family.name in held}

    async def _order(self, order: Order) -> None:
        await self._connection.publish(ORDERS, msgspec.json.encode(order))

    async def _told_by(self, message: Msg) -> None:
        beat = msgspec.json.decode(message.data, type=Beat)
        self._told[beat.peer] = beat.held
        self._heard.set()

    async def _beat(self) -> None:
        self._heard.clear()
        await self._heard.wait()
