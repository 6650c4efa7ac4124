"""Named points at which a peer dies: on the way from an outcome to its ack, of a decision to its event, of a step to
its record, of a wait to its park, or of its end to a wake. `KillPoints` runs inside a peer, and may also let it dawdle
there, lose the ack, or have it read from a replica that lags.
"""

import asyncio
import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from contracts.subjects import Identity, Kind
from mesh.bus import commit as door
from mesh.bus import events, parks, records
from mesh.bus.connection import Bus
from mesh.bus.pull import Delivery
from mesh.runtime import intake, settle, timekeeper
from mesh.testing.history import Entry, History, What
from mesh.workflow import durable


class Point(StrEnum):
    """Where a peer can die, or dawdle; the last two only lose an ack, and a record that is read."""

    UNCOMMITTED = "uncommitted"
    COMMITTED = "committed"
    HALF_RELAYED = "half-relayed"
    RELAYED = "relayed"
    UNTOLD = "untold"
    """The record or the park's end stands, and what was decided is not told."""
    TOLD = "told"
    """What was decided is told, and the delivery not settled."""
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
    LAGGED = "lagged"
    """A record that stands is not found, as on a replica that has not come so far."""


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
        self._surround(events, "store_once", before=Point.UNTOLD, after=Point.TOLD)
        self._surround(settle, "park", before=Point.PARK_BEGUN, after=Point.PARKED)
        self._surround(settle, "set_timer", after=Point.TIMED)
        self._surround(settle, "read_many", after=Point.LOOKED)
        self._surround(intake, "publish_wake", after=Point.AGAIN_WOKEN)
        self._surround(settle, "pass_on", before=Point.WAKE_DUE, after=Point.WOKEN)
        for module in (settle, timekeeper):
            self._surround(module, "wake", after=Point.WOKEN)
        for module in (settle, intake, timekeeper):
            self._lose_acks(module)
        if self.chances.get(Point.LAGGED):
            self._let_replicas_lag()

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

    def _let_replicas_lag(self) -> None:
        found = records._found

        def found_or_not(message: Any) -> Any:
            stands = found(message)
            if stands is not None and self._happens(Point.LAGGED):
                self.history.add(Entry(What.FAULT, peer=self.peer, detail=Point.LAGGED))
                return None
            return stands

        records._found = found_or_not

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
