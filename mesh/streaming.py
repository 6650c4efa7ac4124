"""Streamed parts at the submitter: in order, with what was missed and what starts over said plainly.

Parts are core NATS messages: nothing stores them. The peer that runs an attempt keeps its last parts, for a
while past its end, so a listener that comes late or lost its connection asks for them; what is kept no more is
told as `Missed`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from contracts import headers as names
from contracts import wire
from contracts.control import PartsKept, PartsWanted, Runs, WhoRuns
from contracts.subjects import Identity
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.provenance import is_stored
from mesh.bus.records import Stored
from mesh.payload import ANYTHING

ASK_WITHIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """One emitted part. `sequence` counts from 0 within its attempt."""

    value: Any
    attempt: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """Another attempt starts over: what earlier attempts streamed is void."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Missed:
    """Parts `first` up to but without `end` of an attempt went by and are kept nowhere."""

    attempt: int
    first: int
    end: int


async def follow(bus: Bus, task: Identity, recorded: asyncio.Task[Stored]) -> AsyncIterator[Part | Restarted | Missed]:
    """Parts of a task until `recorded` has its result record; cancels `recorded` when left early."""
    arrived: asyncio.Queue[tuple[int, int, bytes, wire.ContentType] | None] = asyncio.Queue()

    def heard(_: str, data: bytes, found: dict[str, str]) -> None:
        if is_stored(found):
            return
        attempt, _, sequence = found.get(names.PART, "").partition(".")
        if attempt.isdecimal() and sequence.isdecimal():
            as_type = wire.content_type(found.get(names.CONTENT_TYPE))
            arrived.put_nowait((int(attempt), int(sequence), data, as_type))

    seen = _Seen(bus, task)
    # None asks to catch up: at first, and after each reconnection.
    arrived.put_nowait(None)
    off = bus.on_reconnect(lambda: arrived.put_nowait(None))
    recorded.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        async with bus.listening(bus.subjects.part(task), heard):
            while not recorded.done() or not arrived.empty():
                item = await arrived.get()
                if item is not None:
                    async for event in seen.take(*item):
                        yield event
                elif not recorded.done():
                    async for event in seen.catch_up():
                        yield event
            outcome = read_outcome(recorded.result())
            async for event in seen.finish(outcome.attempt, outcome.parts):
                yield event
    finally:
        off()
        recorded.cancel()


class _Seen:
    """How far a listener has come: the attempt it follows, and the next part it expects."""

    def __init__(self, bus: Bus, task: Identity) -> None:
        self._bus = bus
        self._task = task
        self._attempt = 0
        self._next = 0

    async def take(
        self, attempt: int, sequence: int, data: bytes, as_type: wire.ContentType
    ) -> AsyncIterator[Part | Restarted | Missed]:
        """A part as it arrives: what lies before it first, a repeated one not again."""
        if attempt < self._attempt or (attempt == self._attempt and sequence < self._next):
            return
        for restarted in self._turn_to(attempt):
            yield restarted
        async for missing in self._fill(sequence):
            yield missing
        self._next = sequence + 1
        yield Part(ANYTHING.decode(data, as_type), attempt, sequence)

    async def catch_up(self) -> AsyncIterator[Part | Restarted | Missed]:
        """What the running attempt has streamed so far."""
        question = wire.encode(WhoRuns(id=self._task.id))
        subject = self._bus.subjects.ctl(self._task.capability, "who-runs")
        answers = await self._bus.gather(subject, question, within_s=ASK_WITHIN_S, enough=1)
        for runs in wire.readable(Runs, answers):
            for running in runs.running:
                if running.parts and running.attempt >= self._attempt:
                    for restarted in self._turn_to(running.attempt):
                        yield restarted
                    async for missing in self._fill(running.parts):
                        yield missing

    async def finish(self, attempt: int, parts: int) -> AsyncIterator[Part | Restarted | Missed]:
        """What the recorded attempt streamed and did not arrive."""
        for restarted in self._turn_to(attempt) if parts or self._attempt else ():
            yield restarted
        async for event in self._fill(parts):
            yield event

    def _turn_to(self, attempt: int) -> Iterator[Restarted]:
        if attempt <= self._attempt:
            return
        if self._attempt:
            yield Restarted(attempt)
        self._attempt, self._next = attempt, 0

    async def _fill(self, end: int) -> AsyncIterator[Part | Missed]:
        """Parts from the next expected one up to `end`, as far as the peer keeps them."""
        if self._next >= end:
            return
        wanted = PartsWanted(id=self._task.id, attempt=self._attempt, first=self._next, end=end)
        subject = self._bus.subjects.ctl(self._task.capability, "parts")
        answers = await self._bus.gather(subject, wire.encode(wanted), within_s=ASK_WITHIN_S, enough=1)
        for kept in wire.readable(PartsKept, answers):
            for sequence, value in kept.parts:
                if sequence > self._next:
                    yield Missed(self._attempt, self._next, sequence)
                if sequence >= self._next:
                    self._next = sequence + 1
                    yield Part(value, self._attempt, sequence)
        if self._next < end:
            yield Missed(self._attempt, self._next, end)
            self._next = end
