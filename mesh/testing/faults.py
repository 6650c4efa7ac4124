"""Faults as objects: each strikes a scene once, and any of them combines with any workload and checker.

A scene has peers that are real processes, restarted when they end, and a server of its own. `KillPoints` runs
inside a peer: it ends the process, or lets it dawdle, at a named point of the way from an outcome to its ack, of a
step to its record, of a wait to its park, or of its end to a wake; or it loses the ack.
"""

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from contracts.subjects import Identity, Kind
from mesh.bus import commit as door
from mesh.bus import parks
from mesh.bus.connection import Bus
from mesh.bus.pull import Delivery
from mesh.client import Mesh
from mesh.errors import BusUnavailable, Overloaded, PublishUnconfirmed
from mesh.local.server import LocalServer
from mesh.runtime import intake, settle, timekeeper
from mesh.testing.history import Entry, History, What
from mesh.workflow import durable

END_WITHIN_S = 30.0
AGAIN_S = 0.05


class Fleet:
    """Peers as processes. One that ends is replaced, as an orchestrator would, until the fleet is left."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: int,
        env: Mapping[str, str],
        cwd: Path,
        history: History,
        log: Path | None = None,
    ) -> None:
        self._command = command
        self._size = size
        self._env = dict(env)
        self._cwd = cwd
        self._history = history
        self._log = log
        self._processes: list[asyncio.subprocess.Process] = []
        self._spawned: list[int] = []
        self._leaving = asyncio.Event()
        self._may_start = asyncio.Event()
        self._may_start.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Fleet"]:
        """The peers until left; then they are told to drain, and those that do not end are killed."""
        async with asyncio.TaskGroup() as fibers:
            for _ in range(self._size):
                fibers.create_task(self._keep_one())
            try:
                yield self
            finally:
                self._leaving.set()
                self._may_start.set()
                for process in self._processes:
                    _signal(process.pid, signal.SIGCONT)
                    _signal(process.pid, signal.SIGTERM)
                # Here and not as a fiber: one that fails, or a block that does, would end it with the others.
                await self._end()

    @asynccontextmanager
    async def away(self, signum: int = signal.SIGKILL) -> AsyncIterator[None]:
        """Every peer ended, and none started, until left; then as many start as before."""
        self._may_start.clear()
        try:
            for process in list(self._processes):
                _signal(process.pid, signum)
            for process in list(self._processes):
                await process.wait()
            yield
        finally:
            self._may_start.set()

    @property
    def pids(self) -> list[int]:
        """Processes that run now."""
        return [process.pid for process in self._processes if process.returncode is None]

    @property
    def spawned(self) -> list[int]:
        """Every process that was ever started, the first ones first."""
        return list(self._spawned)

    async def _keep_one(self) -> None:
        while not self._leaving.is_set():
            await self._may_start.wait()
            if self._leaving.is_set():
                return
            process = await self._start()
            self._processes.append(process)
            self._spawned.append(process.pid)
            if self._leaving.is_set():
                _signal(process.pid, signal.SIGTERM)
            elif not self._may_start.is_set():
                _signal(process.pid, signal.SIGKILL)
            code = await process.wait()
            self._history.add(Entry(What.ENDED, peer=str(process.pid), detail=str(code)))
            self._processes.remove(process)

    async def _start(self) -> asyncio.subprocess.Process:
        if self._log is None:
            return await asyncio.create_subprocess_exec(*self._command, env=self._env, cwd=self._cwd)
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._command, env=self._env, cwd=self._cwd, stdout=log, stderr=subprocess.STDOUT
            )

    async def _end(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WITHIN_S):
                for process in list(self._processes):
                    await process.wait()
        for process in list(self._processes):
            _signal(process.pid, signal.SIGKILL)
            await process.wait()


@dataclass(slots=True)
class Scene:
    """What faults strike. `submitted` grows as the workload goes on; its doomed tasks are not in it."""

    fleet: Fleet
    server: LocalServer
    client: Mesh
    history: History
    dice: random.Random
    submitted: list[tuple[Identity, Any]] = field(default_factory=list)
    broker_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def a_peer(self) -> int | None:
        """The process of some peer, or None where none runs now."""
        pids = self.fleet.pids
        return self.dice.choice(pids) if pids else None

    def a_task(self) -> tuple[Identity, Any] | None:
        """Some task that was submitted lately, with its payload."""
        return self.dice.choice(self.submitted[-200:]) if self.submitted else None

    def tell(self, fault: str, task: str = "") -> None:
        self.history.add(Entry(What.FAULT, task=task, detail=fault))


class Fault(Protocol):
    """Something that goes wrong."""

    async def strike(self, scene: Scene) -> None:
        """Let it go wrong once, and end what it holds."""


@dataclass(frozen=True, slots=True)
class KillPeer:
    """A peer ends at once, and tells nobody."""

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is not None:
            scene.tell("kill-peer")
            _signal(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class FreezePeer:
    """A peer stands still for longer than `ack_wait`, and then goes on as if nothing had been: a zombie."""

    for_s: float

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is None:
            return
        scene.tell("freeze-peer")
        _signal(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.for_s)  # the passing of time is the fault
        finally:
            _signal(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class DrainPeer:
    """A peer is asked to leave, as a deployment does."""

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is not None:
            scene.tell("drain-peer")
            _signal(pid, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class KillBroker:
    """The server dies and comes back on the same store, after `for_s` seconds."""

    for_s: float = 0.0

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            scene.tell("kill-broker")
            try:
                await asyncio.to_thread(scene.server.kill)
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                await asyncio.to_thread(scene.server.restart)


@dataclass(frozen=True, slots=True)
class RestartBroker:
    """The server is stopped in good order and started again, as an upgrade does."""

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            scene.tell("restart-broker")
            try:
                await asyncio.to_thread(scene.server.stop)
            finally:
                await asyncio.to_thread(scene.server.restart)


@dataclass(frozen=True, slots=True)
class FreezeBroker:
    """The server stands still for longer than answers are waited for, and then does what it was asked."""

    for_s: float

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            scene.tell("freeze-broker")
            _signal(scene.server.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                _signal(scene.server.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class SubmitAgain:
    """A task that was submitted before, finished or not, is submitted by many at once."""

    times: int = 10

    async def strike(self, scene: Scene) -> None:
        if (found := scene.a_task()) is None:
            return
        task, payload = found
        scene.tell("submit-again", str(task))
        async with asyncio.TaskGroup() as fibers:
            again = [fibers.create_task(submit_surely(scene.client, task, payload)) for _ in range(self.times)]
        for submitting in again:
            scene.history.add(Entry(What.CONFIRMED, task=str(task), is_new=submitting.result().is_new))


@dataclass(frozen=True, slots=True)
class CancelTask:
    """A task is cancelled, wherever it is."""

    async def strike(self, scene: Scene) -> None:
        if (found := scene.a_task()) is not None:
            task, _ = found
            scene.tell("cancel", str(task))
            await repeated_until_done(lambda: scene.client.cancel(task.capability, task.id))


async def submit_surely(
    client: Mesh,
    task: Identity,
    payload: Any,
    *,
    patience_s: float | None = None,
    deadline_s: float | None = None,
) -> Any:
    """A handle on the task, submitted until that is confirmed; each try is given up after `patience_s`."""
    return await repeated_until_done(
        lambda: client.submit(task.capability, payload, key=task.id, deadline_s=deadline_s), patience_s=patience_s
    )


async def repeated_until_done(act: Callable[[], Awaitable[Any]], *, patience_s: float | None = None) -> Any:
    """What `act` comes to, done over while the mesh is away, or full, or the patience too short."""
    while True:
        try:
            async with asyncio.timeout(patience_s):
                return await act()
        except TimeoutError:
            patience_s = None if patience_s is None else 4 * patience_s
        except (BusUnavailable, PublishUnconfirmed, Overloaded):
            await asyncio.sleep(AGAIN_S)


class Point(StrEnum):
    """Where a peer can die, or dawdle; the last only loses an ack."""

    UNCOMMITTED = "uncommitted"
    COMMITTED = "committed"
    HALF_RELAYED = "half-relayed"
    RELAYED = "relayed"
    STEP_RAN = "step-ran"
    """A step has run, and is not recorded."""
    STEP_RECORDED = "step-recorded"
    PARK_BEGUN = "park-begun"
    """The run is over, and the park not written."""
    PARKED = "parked"
    TIMED = "timed"
    """The park's timer is set, and the last look not made."""
    LOOKED = "looked"
    """The last look is made, and the delivery not settled."""
    WAKE_DUE = "wake-due"
    """The task to be woken is known to be parked, and not woken."""
    WOKEN = "woken"
    AGAIN_WOKEN = "again-woken"
    """A wake that met another one was published as a wake, if none stood, and is not settled itself."""
    ACK_LOST = "ack-lost"


@dataclass(slots=True)
class KillPoints:
    """Ends this process with SIGKILL at named points, each with a probability of its own."""

    chances: Mapping[str, float]
    dice: random.Random
    history: History
    peer: str = ""
    times_max: int | None = None
    """How often each point strikes, in all processes that share the history; None is without end."""
    pauses: Mapping[str, float] = field(default_factory=dict)
    """The longest time that this process dawdles at a point, in seconds."""

    def install(self) -> None:
        """Put the points in the way of everything this process settles, records, parks and wakes, for good."""
        commit, relay = (getattr(settle, name) for name in ("commit", "relay"))
        create_once, is_parked = door.create_once, parks.is_parked

        async def commit_or_die(bus: Bus, task: Identity, *args: Any, **options: Any) -> Any:
            await self._reach(Point.UNCOMMITTED, task)
            found = await commit(bus, task, *args, **options)
            await self._reach(Point.COMMITTED, task)
            return found

        async def create_or_die(bus: Bus, subject: str, *args: Any, **options: Any) -> bool:
            made: bool = await create_once(bus, subject, *args, **options)
            if bus.subjects.parse(subject).kind is Kind.TASK:
                await self._reach(Point.HALF_RELAYED, subject)
            return made

        async def relay_or_die(bus: Bus, *args: Any, **options: Any) -> Any:
            repeated = await relay(bus, *args, **options)
            await self._reach(Point.RELAYED, "")
            return repeated

        async def is_parked_or_die(bus: Bus, task: Identity) -> bool:
            found: bool = await is_parked(bus, task)
            if found:
                await self._reach(Point.WAKE_DUE, task)
            return found

        for module, name, wrapped in (
            (settle, "commit", commit_or_die),
            (settle, "relay", relay_or_die),
            (door, "create_once", create_or_die),
            (parks, "is_parked", is_parked_or_die),
        ):
            setattr(module, name, wrapped)
        self._surround(durable, "write_step", before=Point.STEP_RAN, after=Point.STEP_RECORDED)
        self._surround(settle, "park", before=Point.PARK_BEGUN, after=Point.PARKED)
        self._surround(settle, "set_timer", after=Point.TIMED)
        self._surround(settle, "read_many", after=Point.LOOKED)
        self._surround(intake, "publish_wake", after=Point.AGAIN_WOKEN)
        self._surround(settle, "pass_on", before=Point.WAKE_DUE, after=Point.WOKEN)
        for module in (settle, timekeeper):
            self._surround(module, "wake", after=Point.WOKEN)
        for module in (settle, intake, timekeeper):
            self._lose_acks(module)

    def _surround(self, module: Any, name: str, *, before: Point | None = None, after: Point) -> None:
        """Put points before and after a function that a module calls with a bus and what it is about."""
        inner = getattr(module, name)

        async def reach_around(bus: Bus, about: Any, *args: Any, **options: Any) -> Any:
            task = about if isinstance(about, Identity) else ""
            if before is not None:
                await self._reach(before, task)
            found = await inner(bus, about, *args, **options)
            await self._reach(after, task)
            return found

        setattr(module, name, reach_around)

    def _lose_acks(self, module: Any) -> None:
        ack = module.ack

        async def ack_or_lose(bus: Bus, delivery: Delivery) -> None:
            if self._happens(Point.ACK_LOST):
                self.history.add(Entry(What.FAULT, peer=self.peer, detail=Point.ACK_LOST))
            else:
                await ack(bus, delivery)

        module.ack = ack_or_lose

    def _happens(self, point: Point) -> bool:
        if self.dice.random() >= self.chances.get(point, 0.0):
            return False
        if self.times_max is None:
            return True
        struck = sum(entry.detail == point for entry in self.history.read(What.FAULT))
        return struck < self.times_max

    async def _reach(self, point: Point, task: Identity | str) -> None:
        if longest_s := self.pauses.get(point):
            await asyncio.sleep(self.dice.uniform(0, longest_s))  # the passing of time is the fault
        if self._happens(point):
            self.history.add(Entry(What.FAULT, task=str(task), peer=self.peer, detail=point))
            os.kill(os.getpid(), signal.SIGKILL)


def _signal(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
