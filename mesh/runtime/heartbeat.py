"""The peer's side of heartbeats: a table of running tasks, and the process that speaks for them."""

import asyncio
import json
import logging
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import IO

from mesh.bus.beats import BeatTable
from mesh.bus.connection import plain_options, server_addresses
from mesh.bus.pull import Delivery
from mesh.fibers import serving
from mesh.settings import Settings

log = logging.getLogger("mesh.runtime")

BEATS_PER_ACK_WAIT = 4
QUIET_WITHIN_S = 0.1
RESTART_AFTER_S = 0.5


class Heartbeat:
    """Keeps deliveries in flight from being handed to others while their tasks run."""

    def __init__(self, settings: Settings, *, rows: int) -> None:
        self._settings = settings
        self._rows = rows
        self._file: IO[bytes]
        self._table: BeatTable
        self.every_s = settings.ack_wait_s / BEATS_PER_ACK_WAIT

    def beat_for(self, ack_wait_s: float) -> None:
        """Beat often enough for this `ack_wait`; before `running`."""
        self.every_s = ack_wait_s / BEATS_PER_ACK_WAIT

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The heartbeat process, started again if it ends, until left."""
        with tempfile.TemporaryFile(prefix="mesh-beats-") as self._file:
            self._file.truncate(BeatTable.size(self._rows))
            self._table = BeatTable(mmap.mmap(self._file.fileno(), 0), slots=self._rows)
            first = await self._start()
            async with serving(self._keep(first)):
                yield

    def begin(self, delivery: Delivery, *, for_s: float) -> int:
        """Speak for a delivery for `for_s` seconds at most. Returns its row.

        Raises:
            IndexError: more deliveries are in flight than the peer has room for.
        """
        now = time.monotonic()
        return self._table.put(delivery.reply.encode(), began=now, until=now + for_s)

    def change(self, row: int, delivery: Delivery, *, for_s: float) -> None:
        """Speak for another delivery of the same task, or for longer."""
        now = time.monotonic()
        # Old enough to be due at the next scan.
        self._table.replace(row, delivery.reply.encode(), began=now - self.every_s, until=now + for_s)

    def silence(self, row: int) -> None:
        """Speak for the task no longer; the row is still held."""
        self._table.replace(row, b"", began=0.0, until=0.0)

    def end(self, row: int) -> None:
        """Give the row back."""
        self._table.drop(row)

    async def quiet(self) -> None:
        """Return when no heartbeat is being sent, so that none follows a nak."""
        give_up_at = time.monotonic() + QUIET_WITHIN_S
        while self._table.is_scanning() and time.monotonic() < give_up_at:  # noqa: ASYNC110  # see below
            await asyncio.sleep(0.001)  # the other side is a process; there is no event to wait for

    async def _start(self) -> asyncio.subprocess.Process:
        instructions = {
            "servers": server_addresses(self._settings),
            "plain": plain_options(self._settings),
            "name": f"heartbeat of {os.getpid()}",
            "fd": self._file.fileno(),
            "slots": self._rows,
            "every_s": self.every_s,
            "parent": os.getpid(),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "mesh.bus.beater",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._file.fileno(),),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(instructions).encode() + b"\n")
        await process.stdin.drain()
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        try:
            while True:
                code = await process.wait()
                log.warning("the heartbeat process ended with %s; starting another", code)
                await asyncio.sleep(RESTART_AFTER_S)
                process = await self._start()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
