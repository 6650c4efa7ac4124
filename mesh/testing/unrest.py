"""What goes wrong inside a peer, on order: a blocked loop, slow handlers, acks lost or late, a clock that is off.

Whoever plays the faults appends orders to a file that bears the process id; `Unrest` runs inside the peer, reads
them and does as told. It also notes every run in the history, whatever the agents are. For tests only: it replaces
functions of this process, `time.time` among them, for good.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from mesh.bus.connection import Bus
from mesh.bus.pull import Delivery
from mesh.capability import Capability
from mesh.fibers import serving
from mesh.runtime import intake, settle, timekeeper
from mesh.runtime.handling import Handling
from mesh.testing.history import Entry, History, What

LOOK_EVERY_S = 0.05
SLOWED_S_MAX = 5.0
"""What slowness adds to a run at most: a task that waited for another is not slow itself."""


class Block(msgspec.Struct, frozen=True, tag="block"):
    """The event loop stands still."""

    for_s: float


class Slow(msgspec.Struct, frozen=True, tag="slow"):
    """Handlers take so many times as long, and at least `least_s` longer."""

    for_s: float
    times: float
    least_s: float = 0.0


class Acks(msgspec.Struct, frozen=True, tag="acks"):
    """A share of the acks is not sent, or is sent `late_s` seconds late where that is not zero."""

    for_s: float
    share: float
    late_s: float = 0.0


class Clock(msgspec.Struct, frozen=True, tag="clock"):
    """The wall clock is ahead by so many seconds, or behind if they are negative."""

    for_s: float
    ahead_s: float


Order = Block | Slow | Acks | Clock


def give(orders: Path, pid: int, order: Order) -> None:
    """Have the peer with this process id do as told, soon. One that has ended does nothing."""
    with _file_of(orders, pid).open("ab") as file:
        file.write(_encoder.encode(order) + b"\n")


class Unrest:
    """Obeys orders given to this process. `install` once, before the peer runs; `obey` beside it."""

    def __init__(self, orders: Path, history: History, dice: random.Random) -> None:
        self._file = _file_of(orders, os.getpid())
        self._history = history
        self._dice = dice
        self._me = str(os.getpid())
        self._read_bytes = 0
        self._until: dict[type[Order], tuple[float, Order]] = {}

    def install(self, capabilities: Iterable[Capability[Any, Any, Any]]) -> None:
        """Put what may go wrong in the way of this process, for good."""
        self._note_runs()
        self._shift_clock()
        for capability in capabilities:
            capability.call = self._slowed(capability)
        for module in (settle, intake, timekeeper):
            self._lose_acks(module)

    async def obey(self) -> None:
        """Do as told until cancelled."""
        async with serving() as self._fibers:
            while True:
                for order in self._orders():
                    self._begin(order)
                await asyncio.sleep(LOOK_EVERY_S)

    def _orders(self) -> list[Order]:
        try:
            with self._file.open("rb") as file:
                file.seek(self._read_bytes)
                # The last line may be under way.
                whole = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read_bytes += len(whole[0]) + len(whole[1])
        return [_decoder.decode(line) for line in whole[0].splitlines()]

    def _begin(self, order: Order) -> None:
        if isinstance(order, Block):
            time.sleep(order.for_s)  # what this order asks for
            self._note("blocked")
        else:
            self._until[type(order)] = time.monotonic() + order.for_s, order

    def _note(self, what: str) -> None:
        """Note that something was done as told. It is no strike: that is for whoever gave the order."""
        self._history.add(Entry(What.FAULT, peer=self._me, detail=what))

    def _now(self, kind: type[Any]) -> Any:
        """The order of a kind that holds now, or None."""
        until, order = self._until.get(kind, (0.0, None))
        return order if time.monotonic() < until else None

    def _note_runs(self) -> None:
        run = Handling.run

        async def noted(handling: Handling, *given: Any) -> Any:
            attempt = handling.attempt
            told = Entry(What.RAN, task=str(attempt.identity), peer=self._me, attempt=attempt.number)
            self._history.add(told)
            return await run(handling, *given)

        setattr(Handling, "run", noted)  # noqa: B010  # as one sees it, a method is replaced

    def _shift_clock(self) -> None:
        true_time = time.time

        def shifted() -> float:
            clock = self._now(Clock)
            return true_time() + (clock.ahead_s if clock is not None else 0.0)

        time.time = shifted

    def _slowed(self, capability: Capability[Any, Any, Any]) -> Callable[[Any, Any], Any]:
        inner = capability.call

        def pause_s(began: float) -> float:
            slow = self._now(Slow)
            if slow is None:
                return 0.0
            self._note("slowed")
            return float(min(SLOWED_S_MAX, max(slow.least_s, (slow.times - 1) * (time.monotonic() - began))))

        async def asynchronous(value: Any, ctx: Any) -> Any:
            began = time.monotonic()
            found = await inner(value, ctx)
            await asyncio.sleep(pause_s(began))
            return found

        def plain(value: Any, ctx: Any) -> Any:
            began = time.monotonic()
            found = inner(value, ctx)
            time.sleep(pause_s(began))
            return found

        return asynchronous if capability.is_async else plain

    def _lose_acks(self, module: Any) -> None:
        ack = module.ack

        async def late(bus: Bus, delivery: Delivery, late_s: float) -> None:
            await asyncio.sleep(late_s)
            await ack(bus, delivery)

        async def ack_or_not(bus: Bus, delivery: Delivery) -> None:
            acks = self._now(Acks)
            if acks is None or self._dice.random() >= acks.share:
                await ack(bus, delivery)
                return
            self._note("ack-late" if acks.late_s else "ack-lost")
            if acks.late_s:
                # Beside it: the heartbeat ends with the settling, so that the task is handed to another first.
                self._fibers.create_task(late(bus, delivery, acks.late_s))

        module.ack = ack_or_not


def _file_of(orders: Path, pid: int) -> Path:
    return orders / f"{pid}.orders"


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
