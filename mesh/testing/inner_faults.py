"""Faults inside a peer, which has an `Unrest` and takes orders."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mesh.testing.faults import Need, Scene
from mesh.testing.unrest import Acks, Block, Clock, Order, Slow, give


@dataclass(frozen=True, slots=True)
class BlockLoop:
    """A peer's event loop is blocked, as by a handler that computes or sleeps where it should wait."""

    name: ClassVar[str] = "block-loop"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ORDERS})
    is_safe: ClassVar[bool] = False

    for_s: float

    async def strike(self, scene: Scene) -> None:
        await _ordered(scene, self.name, Block(self.for_s))


@dataclass(frozen=True, slots=True)
class SlowHandler:
    """The handlers of one peer take many times as long for a while."""

    name: ClassVar[str] = "slow-handler"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ORDERS})
    is_safe: ClassVar[bool] = False

    for_s: float
    times: float = 10.0
    least_s: float = 0.1

    async def strike(self, scene: Scene) -> None:
        await _ordered(scene, self.name, Slow(self.for_s, self.times, self.least_s))


@dataclass(frozen=True, slots=True)
class DropAcks:
    """A share of one peer's acks is lost for a while, as at the end of a connection."""

    name: ClassVar[str] = "drop-acks"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ORDERS})
    is_safe: ClassVar[bool] = False

    for_s: float
    share: float = 0.5

    async def strike(self, scene: Scene) -> None:
        await _ordered(scene, self.name, Acks(self.for_s, self.share))


@dataclass(frozen=True, slots=True)
class LateAcks:
    """A share of one peer's acks comes when `ack_wait` is over, and the task with another peer."""

    name: ClassVar[str] = "late-acks"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ORDERS})
    is_safe: ClassVar[bool] = False

    for_s: float
    late_s: float
    share: float = 0.5

    async def strike(self, scene: Scene) -> None:
        await _ordered(scene, self.name, Acks(self.for_s, self.share, self.late_s))


@dataclass(frozen=True, slots=True)
class ShiftClock:
    """One peer's wall clock is ahead, or behind, for a while, and then right again."""

    name: ClassVar[str] = "shift-clock"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ORDERS})
    is_safe: ClassVar[bool] = False

    for_s: float
    ahead_s: float

    async def strike(self, scene: Scene) -> None:
        told = f" {self.ahead_s:+g} s"
        await _ordered(scene, self.name, Clock(self.for_s, self.ahead_s), told=lambda pid: f"{pid}{told}")


async def _ordered(scene: Scene, name: str, order: Order, told: Callable[[int], str] = str) -> None:
    """Have some peer do as told; it ends by itself, also where the peer ends first."""
    assert scene.orders is not None
    if (pid := scene.a_peer()) is None:
        return
    with scene.struck(name, told(pid)):
        give(scene.orders, pid, order)
        await asyncio.sleep(order.for_s)  # the passing of time is the fault
