"""Records of what is in use of a resource, changed by compare-and-set, and the server's time by their timestamps.

A cell is one record as this process knows it. The server echoes each change with its sequence and its time, so that
most changes cost one round trip and no read. An echo that is lost is made up for by a read; a change that another
peer's beat is refused by the sequence it expects, whatever was known here (docs/adr/0011).
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from contracts import headers as names
from contracts.limit import Rate, Seats
from contracts.subjects import LimitKind
from contracts.wire import decode
from mesh.bus.commit import ttl
from mesh.bus.connection import Bus, Headers
from mesh.bus.provenance import is_echo
from mesh.bus.records import RETRY_S, Stored, read, read_range, unix
from mesh.errors import SequenceConflict
from mesh.resilience.server_time import ServerTime

KEPT_S = 3_600.0
"""How long what is on record about a resource outlives what it says."""
ECHO_WITHIN_S = 0.05
READ_TRIES = 20
TOLD_TIME_S = 60.0
"""How old what is known of the server's time may be before it is asked for."""


class ServerClock:
    """What this process knows of the server's time; see `mesh.resilience.server_time`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._time = ServerTime()
        self._connected_at = time.monotonic()

    def reconnected(self) -> None:
        """Take note that the connection was gone."""
        self._connected_at = time.monotonic()

    @property
    def connected_s(self) -> float:
        """How long the connection has stood."""
        return time.monotonic() - self._connected_at

    def now(self) -> float:
        """The earliest that the server's clock can stand at now, as Unix seconds; 0 while nothing is known."""
        return self._time.at(time.monotonic())

    def heard(self, told: float) -> None:
        self._time = self._time.heard(told, time.monotonic())

    def wrote(self, told: float, sent_at: float) -> None:
        self._time = self._time.wrote(told, sent_at, time.monotonic())

    async def refresh(self) -> None:
        """Ask for the time, if nothing told it lately.

        Raises:
            BusUnavailable, PublishUnconfirmed, ApiError: it cannot be had now.
        """
        if self._time.is_known and time.monotonic() - self._time.heard_at < TOLD_TIME_S:
            return
        sent_at = time.monotonic()
        info = await self._bus.api(f"STREAM.INFO.{self._bus.subjects.limit_stream}")
        self.wrote(unix(info.get("ts", "")), sent_at)


class Cell:
    """One record of a resource. `on_change` is called at each change that is heard of."""

    def __init__(
        self, bus: Bus, clock: ServerClock, kind: LimitKind, resource: str, *, on_change: Callable[[], None]
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._subject = bus.subjects.limit(kind, resource)
        self._echo = bus.subjects.limit_echo(kind, resource)
        self._on_change = on_change
        self._known: Stored | None = None
        self._is_read = False
        self._at_least = 0
        self._own = (0, 0.0)
        self._heard = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear the changes of it, until left."""
        async with self._bus.listening(self._echo, self._take_echo):
            yield

    @property
    def known(self) -> Stored | None:
        """The record as it was heard of last, old or missing where nothing was."""
        return self._known

    def forget(self) -> None:
        """Read it anew when it is asked for."""
        self._known, self._is_read, self._at_least = None, False, 0

    async def current(self) -> Stored | None:
        """The record as it stands, as far as can be known without another change. Waits for ever where nobody answers.

        Raises:
            BusUnavailable, PublishUnconfirmed: the server cannot be asked for its time now.
        """
        await self._clock.refresh()
        if self._at_least and not self._is_fresh():
            self._heard.clear()
            try:
                async with asyncio.timeout(ECHO_WITHIN_S):
                    while not self._is_fresh():
                        await self._heard.wait()
                        self._heard.clear()
            except TimeoutError:
                pass
        tries = 0
        while not self._is_fresh():
            found = await read(self._bus, self._subject, stream=self._bus.subjects.limit_stream)
            if self._is_fresh():
                break
            if found is None or found.sequence < self._at_least:
                if not self._at_least:
                    self._known, self._is_read = None, True
                    break
                # A replica that lags. Whatever is written upon an old record is refused, so that is no danger.
                tries += 1
                self._at_least = 0 if tries >= READ_TRIES else self._at_least
                await asyncio.sleep(RETRY_S * random.uniform(0.1, 0.3))  # noqa: S311  # spreads peers out
                continue
            self._take(found)
        if self._known is not None and self._known.sequence == self._own[0]:
            self._clock.wrote(self._known.stored_at, self._own[1])
            self._own = (0, 0.0)
        return self._known

    async def swap(self, based_on: Stored | None, data: bytes, *, matters_s: float) -> bool:
        """Replace the record, if it still stands as it was when `data` was made. False: it does not; look again.

        It is kept for as long as it matters, `matters_s` seconds, and some time more.

        Raises:
            BusUnavailable: nothing was stored.
            StreamFull, PublishRejected: the stream refused it.
            PublishUnconfirmed: it may be stored.
        """
        expected = 0 if based_on is None else based_on.sequence
        headers = {names.EXPECTED_SUBJECT_SEQUENCE: str(expected), names.TTL: ttl(matters_s + KEPT_S)}
        sent_at = time.monotonic()
        try:
            sequence = await self._bus.store(self._subject, data, headers)
        except SequenceConflict as conflict:
            if conflict.sequence < expected:
                # It expired, or its stream was made anew.
                self.forget()
            else:
                self._at_least = max(self._at_least, conflict.sequence)
            return False
        self._own = (sequence, sent_at)
        self._at_least = max(self._at_least, sequence)
        return True

    def _is_fresh(self) -> bool:
        if self._known is None:
            return self._is_read and not self._at_least
        return self._known.sequence >= self._at_least

    def _take_echo(self, _: str, data: bytes, found: Headers) -> None:
        if not is_echo(found, stream=self._bus.subjects.limit_stream, subject=self._subject):
            return
        stored_at = unix(found.get(names.STORED_AT, ""))
        self._clock.heard(stored_at)
        self._take(Stored(self._subject, int(found.get(names.SEQUENCE, 0)), stored_at, data, found))

    def _take(self, stored: Stored) -> None:
        if self._known is not None and stored.sequence <= self._known.sequence:
            return
        self._known, self._is_read = stored, True
        self._heard.set()
        self._on_change()


async def in_use(bus: Bus) -> tuple[float, dict[str, Seats], dict[str, tuple[Rate, float]]]:
    """The server's time, and by resource who holds seats and how full the buckets are, with when that was stored.

    Raises:
        BusUnavailable, PublishUnconfirmed, ApiError: the server does not answer.
        ContractError: a record is of a newer format.
    """
    clock = ServerClock(bus)
    await clock.refresh()
    seats: dict[str, Seats] = {}
    rates: dict[str, tuple[Rate, float]] = {}
    async for stored in read_range(bus, bus.subjects.limit_stream, bus.subjects.limits_stored):
        kind, resource = bus.subjects.parse_limit(stored.subject)
        if kind == "seats":
            seats[resource] = decode(Seats, stored.data)
        elif kind == "rate":
            rates[resource] = decode(Rate, stored.data), stored.stored_at
    return clock.now(), seats, rates
