"""The heartbeat process: extends running tasks (`+WPI`) while their peer may be too busy to do it.

It runs beside the peer, reads the peer's table of running tasks from shared memory, and ends with it. A
handler that blocks the event loop, or holds the interpreter lock in a slow regular expression, cannot stop
it. A peer that is stopped (SIGSTOP) is not spoken for: its tasks go to others. It takes its instructions as
one line of JSON on standard input, whose end it takes as the peer's.

It imports nothing that costs memory: run as `python -P -m mesh.bus.beater`.
"""

import asyncio
import contextlib
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import nats
import nats.errors

from mesh.bus.beats import BeatTable
from mesh.bus.options import client_options

EXTEND = b"+WPI"


async def beat(table: BeatTable, instructions: dict[str, Any], parent: int) -> None:
    async def quiet(_: Exception) -> None:
        return None

    nc = await nats.connect(
        instructions["servers"],
        name=instructions["name"],
        error_cb=quiet,
        **client_options(instructions["plain"]),
    )
    every_s = instructions["every_s"]
    while os.getppid() == parent:
        if not _is_stopped(parent):
            table.begin_scan()
            now = time.monotonic()
            for reply in table.due(now, older_than_s=every_s / 2):
                with contextlib.suppress(nats.errors.Error):
                    await nc.publish(reply, EXTEND)
            if nc.is_connected:
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    await nc.flush(timeout=1)
            table.end_scan()
        await asyncio.sleep(every_s)


async def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole group lets the peer drain first.
        signal.signal(signum, signal.SIG_IGN)
    instructions = json.loads(sys.stdin.readline())
    parent = instructions["parent"]
    table = BeatTable(mmap.mmap(instructions["fd"], 0), slots=instructions["slots"])
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as fibers:
        beating = fibers.create_task(beat(table, instructions, parent))
        await reader.read()
        beating.cancel()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


if __name__ == "__main__":
    asyncio.run(main())
