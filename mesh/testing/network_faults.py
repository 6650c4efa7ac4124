"""Faults of the network between peers, or the submitter, and the servers; the scene has a line for each of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesh.testing.faults import Need, Scene, a_leader
from mesh.testing.network import Line


@dataclass(frozen=True, slots=True)
class DelayNetwork:
    """Everything between peers and servers comes late for a while, each piece by another length."""

    name: ClassVar[str] = "delay-network"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LINES})
    is_safe: ClassVar[bool] = False

    for_s: float
    delay_s: float = 0.1
    jitter_s: float = 0.2

    async def strike(self, scene: Scene) -> None:
        with scene.struck(self.name, "every peer"):
            try:
                for line in scene.lines:
                    line.delay(self.delay_s, jitter_s=self.jitter_s)
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                _heal(scene.lines)


@dataclass(frozen=True, slots=True)
class ThrottlePeer:
    """A peer's network lets so little pass that messages pile up before it, and the server may drop it."""

    name: ClassVar[str] = "throttle-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LINES})
    is_safe: ClassVar[bool] = False

    for_s: float
    bytes_per_s: float = 4_096

    async def strike(self, scene: Scene) -> None:
        place = scene.dice.randrange(len(scene.lines))
        with scene.struck(self.name, _peer(place)):
            try:
                scene.lines[place].throttle(self.bytes_per_s)
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                scene.lines[place].heal()


@dataclass(frozen=True, slots=True)
class PartitionPeer:
    """A peer is cut off: its connections stay open, and nothing passes."""

    name: ClassVar[str] = "partition-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LINES})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        place = scene.dice.randrange(len(scene.lines))
        with scene.struck(self.name, _peer(place)):
            await _held([scene.lines[place]], self.for_s)


@dataclass(frozen=True, slots=True)
class PartitionHalf:
    """Half of the peers are cut off: their connections stay open, and nothing passes."""

    name: ClassVar[str] = "partition-half"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LINES})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        places = sorted(scene.dice.sample(range(len(scene.lines)), max(1, len(scene.lines) // 2)))
        with scene.struck(self.name, ", ".join(map(_peer, places))):
            await _held([scene.lines[place] for place in places], self.for_s)


@dataclass(frozen=True, slots=True)
class CutPeer:
    """A peer's connections are reset, and so is each new one, for a while."""

    name: ClassVar[str] = "cut-peer"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LINES})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        place = scene.dice.randrange(len(scene.lines))
        with scene.struck(self.name, _peer(place)):
            try:
                scene.lines[place].cut()
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                scene.lines[place].heal()


@dataclass(frozen=True, slots=True)
class CutSubmitter:
    """The submitter's own connection is reset in the middle of its submissions, and stays away for a while."""

    name: ClassVar[str] = "cut-submitter"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.OWN_LINE})
    is_safe: ClassVar[bool] = True

    for_s: float = 0.0

    async def strike(self, scene: Scene) -> None:
        assert scene.own_line is not None
        with scene.struck(self.name, "submitter"):
            try:
                scene.own_line.cut()
                await asyncio.sleep(self.for_s)  # the passing of time is the fault
            finally:
                scene.own_line.heal()


@dataclass(frozen=True, slots=True)
class PartitionLeader:
    """The node that leads the mesh's stream is cut off from the other nodes, while clients still reach it."""

    name: ClassVar[str] = "partition-leader"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLUSTER, Need.ROUTES})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        async with scene.broker_lock:
            place = list(scene.server.nodes).index(await a_leader(scene))
            with scene.struck(self.name, f"node {place + 1}"):
                await _held([scene.routes[place]], self.for_s)


async def _held(lines: Sequence[Line], for_s: float) -> None:
    try:
        for line in lines:
            line.hold()
        await asyncio.sleep(for_s)  # the passing of time is the fault
    finally:
        _heal(lines)


def _heal(lines: Sequence[Line]) -> None:
    for line in lines:
        line.heal()


def _peer(place: int) -> str:
    return f"peer {place + 1}"
