"""Faults as objects: each strikes a scene once, and any of them combines with any workload and checker.

A scene has peers that are real processes, restarted when they end, and a server or a cluster of its own. What
strikes "the server" strikes one node of a cluster, never two at once, but for `KillAll`. What a fault needs of its
scene it says in `needs`; one that `is_safe` harms nothing that its scene did not start, so that it may strike a mesh
that others use. `mesh.testing.chaos.catalogue` has them all by name.
"""

import asyncio
import itertools
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from contracts.subjects import Identity
from mesh.bus.replies import ApiError
from mesh.client import Mesh
from mesh.errors import BusUnavailable, Overloaded, PublishUnconfirmed
from mesh.local.server import LocalServer
from mesh.testing.cluster import stream_leader
from mesh.testing.fleet import Fleet, send_signal
from mesh.testing.history import Entry, History, What
from mesh.testing.network import Line

AGAIN_S = 0.05


class Need(StrEnum):
    """What a fault needs of its scene, besides a client."""

    PEERS = "own peers"
    ORDERS = "own peers that take orders"
    SERVER = "own server"
    CLUSTER = "own cluster"
    LINES = "own peers on lines"
    OWN_LINE = "own line"
    ROUTES = "own cluster on lines"


class Server(Protocol):
    """What a mesh stands on: one server, or a cluster whose nodes are servers."""

    @property
    def url(self) -> str:
        """The address of the server, or those of all nodes."""

    @property
    def nodes(self) -> Sequence[LocalServer]:
        """Everything that runs as a process of its own."""

    def kill(self) -> None:
        """End everything with SIGKILL."""

    def restart(self) -> None:
        """Start everything again on its store."""


@dataclass(slots=True)
class Scene:
    """What faults strike. `submitted` grows as the workload goes on; its doomed tasks are not in it.

    `fleet` and `server` may only be asked for by a fault that needs them.
    """

    fleet: Fleet
    server: Server
    client: Mesh
    history: History
    dice: random.Random
    submitted: list[tuple[Identity, Any]] = field(default_factory=list)
    broker_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lines: Sequence[Line] = ()
    """The network between each peer and the servers, where it can be made worse."""
    own_line: Line | None = None
    """The network between the submitter and the servers."""
    routes: Sequence[Line] = ()
    """The network between each node of a cluster and the others."""
    orders: Path | None = None
    """Where peers that have an `Unrest` look for orders."""
    _strikes: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def a_peer(self) -> int | None:
        """The process of some peer, or None where none runs now."""
        pids = self.fleet.pids
        return self.dice.choice(pids) if pids else None

    def a_node(self) -> LocalServer:
        """The server, or some node of the cluster."""
        nodes = self.server.nodes
        # One server takes no dice: the plans of old seeds stay.
        return nodes[0] if len(nodes) == 1 else self.dice.choice(nodes)

    def a_task(self) -> tuple[Identity, Any] | None:
        """Some task that was submitted lately, with its payload."""
        return self.dice.choice(self.submitted[-200:]) if self.submitted else None

    @contextmanager
    def struck(self, fault: str, target: str | int = "", *, task: str = "") -> Iterator[None]:
        """A strike, noted from its beginning to its end, whatever ends it."""
        number = str(next(self._strikes))
        self.history.add(Entry(What.FAULT, task=task, peer=str(target), detail=fault, value=number))
        try:
            yield
        finally:
            self.history.add(Entry(What.HEALED, peer=str(target), detail=fault, value=number))

    def tell(self, fault: str, task: str = "", target: str | int = "") -> None:
        """Note a strike that is over at once."""
        with self.struck(fault, target, task=task):
            pass


class Fault(Protocol):
    """Something that goes wrong. The first line of its docstring says what."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    is_safe: ClassVar[bool]
    """Whether it harms nothing but what its own scene started and submitted."""

    async def strike(self, scene: Scene) -> None:
        """Let it go wrong once, and end what it holds. Noted in the history from its beginning to its end."""


@dataclass(frozen=True, slots=True)
class KillPeer:
    """A peer ends at once, and tells nobody."""

    name: ClassVar[str] = "kill-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PEERS})
    is_safe: ClassVar[bool] = False

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is not None:
            with scene.struck(self.name, pid):
                send_signal(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class FreezePeer:
    """A peer stands still for longer than `ack_wait`, and then goes on as if nothing had been: a zombie."""

    name: ClassVar[str] = "freeze-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PEERS})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is None:
            return
        with scene.struck(self.name, pid):
            send_signal(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                send_signal(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class DrainPeer:
    """A peer is asked to leave, as a deployment does."""

    name: ClassVar[str] = "drain-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PEERS})
    is_safe: ClassVar[bool] = False

    async def strike(self, scene: Scene) -> None:
        if (pid := scene.a_peer()) is not None:
            with scene.struck(self.name, pid):
                send_signal(pid, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class KillBroker:
    """A server dies, and comes back on the same store after a while."""

    name: ClassVar[str] = "kill-broker"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SERVER})
    is_safe: ClassVar[bool] = False

    for_s: float = 0.0

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            node = scene.a_node()
            with scene.struck(self.name, _node(scene, node)):
                await _kill(node, self.for_s)


@dataclass(frozen=True, slots=True)
class KillLeader:
    """The node that leads the mesh's stream dies, and comes back on the same store after a while."""

    name: ClassVar[str] = "kill-leader"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLUSTER})
    is_safe: ClassVar[bool] = False

    for_s: float = 0.0

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            node = await a_leader(scene)
            with scene.struck(self.name, _node(scene, node)):
                await _kill(node, self.for_s)


@dataclass(frozen=True, slots=True)
class KillAll:
    """Every node dies at once, and all come back on their stores after a while."""

    name: ClassVar[str] = "kill-all"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLUSTER})
    is_safe: ClassVar[bool] = False

    for_s: float = 0.0

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            with scene.struck(self.name, "every node"):
                await _kill(scene.server, self.for_s)


@dataclass(frozen=True, slots=True)
class StepDown:
    """Another node is told to lead the mesh's stream, as an operator does before an upgrade."""

    name: ClassVar[str] = "step-down"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLUSTER})
    is_safe: ClassVar[bool] = False

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            with scene.struck(self.name), suppress(ApiError, BusUnavailable, PublishUnconfirmed):
                await scene.client.bus.api(f"STREAM.LEADER.STEPDOWN.{scene.client.bus.subjects.stream}")


@dataclass(frozen=True, slots=True)
class RestartBroker:
    """A server is stopped in good order and started again, as an upgrade does."""

    name: ClassVar[str] = "restart-broker"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SERVER})
    is_safe: ClassVar[bool] = False

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            node = scene.a_node()
            with scene.struck(self.name, _node(scene, node)):
                try:
                    await asyncio.to_thread(node.stop)
                finally:
                    await asyncio.to_thread(node.restart)


@dataclass(frozen=True, slots=True)
class FreezeBroker:
    """A server stands still for longer than answers are waited for, and then does what it was asked."""

    name: ClassVar[str] = "freeze-broker"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SERVER})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            node = scene.a_node()
            with scene.struck(self.name, _node(scene, node)):
                send_signal(node.pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(self.for_s)  # the passing of time is the fault
                finally:
                    send_signal(node.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class FreezeLeader:
    """The node that leads the mesh's stream stands still until another one leads, and then goes on as if it led."""

    name: ClassVar[str] = "freeze-leader"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLUSTER})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            node = await a_leader(scene)
            with scene.struck(self.name, _node(scene, node)):
                send_signal(node.pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(self.for_s)  # the passing of time is the fault
                finally:
                    send_signal(node.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class SubmitAgain:
    """A task that was submitted before, finished or not, is submitted by many at once."""

    name: ClassVar[str] = "submit-again"
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_safe: ClassVar[bool] = True

    times: int = 10

    async def strike(self, scene: Scene) -> None:
        if (found := scene.a_task()) is None:
            return
        task, payload = found
        with scene.struck(self.name, task=str(task)):
            async with asyncio.TaskGroup() as fibers:
                again = [fibers.create_task(submit_surely(scene.client, task, payload)) for _ in range(self.times)]
        for submitting in again:
            scene.history.add(Entry(What.CONFIRMED, task=str(task), is_new=submitting.result().is_new))


@dataclass(frozen=True, slots=True)
class CancelTask:
    """A task is cancelled, wherever it is."""

    name: ClassVar[str] = "cancel"
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_safe: ClassVar[bool] = True

    async def strike(self, scene: Scene) -> None:
        if (found := scene.a_task()) is not None:
            task, _ = found
            with scene.struck(self.name, task=str(task)):
                await repeated_until_done(lambda: scene.client.cancel(task.capability, task.id))


async def a_leader(scene: Scene) -> LocalServer:
    """The node that leads the mesh's stream; waits while there is an election."""
    if len(scene.server.nodes) == 1:
        return scene.server.nodes[0]
    bus = scene.client.bus
    return scene.server.nodes[await stream_leader(bus, bus.subjects.stream)]


def _node(scene: Scene, node: LocalServer) -> str:
    return "" if len(scene.server.nodes) == 1 else f"node {scene.server.nodes.index(node) + 1}"


async def _kill(server: LocalServer | Server, for_s: float) -> None:
    try:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(for_s)  # the passing of time is the fault
    finally:
        await asyncio.to_thread(server.restart)


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
