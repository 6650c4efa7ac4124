"""A desk started as a user starts it: `mesh up` in a folder of its own, until left."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from mesh import MeshError

TARGETS: Final = ("agents.support_desk.desk", "mesh.human")
READY_WITHIN_S: Final = 90.0
STOP_WITHIN_S: Final = 40.0
LOOK_EVERY_S: Final = 0.05
LAST_LINES: Final = 5

_GREETING: Final = re.compile(r"peers? on (?P<url>nats://[^\s,]+)")


class DeskNotStarted(MeshError):
    """`mesh up` ended, or was not ready in time. The message has its last lines."""


@dataclass(frozen=True, slots=True)
class Crew:
    """A desk that runs: a server and its peers, each a process."""

    url: str
    folder: Path

    async def peer_pids(self) -> list[int]:
        """The processes of the peers that answer, by their names."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "mesh", "agents", "--json"), cwd=self.folder, stdout=PIPE
        )
        told, _ = await process.communicate()
        return [answer.beat.pid for answer in msgspec.json.decode(told, type=_Agents).peers]


class _Beat(msgspec.Struct):
    pid: int


class _Peer(msgspec.Struct):
    beat: _Beat


class _Agents(msgspec.Struct):
    peers: list[_Peer]


@asynccontextmanager
async def crew_running(folder: Path, *, replicas: int) -> AsyncIterator[Crew]:
    """A desk whose peers are ready; its store and its log go to `folder`. It ends in order when left.

    Raises:
        DeskNotStarted: it ended, or was not ready in time.
    """
    log = folder / "mesh.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "mesh", "up", *TARGETS, "--replicas", str(replicas)),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # A session of its own: Ctrl-C is ours to hear, and to pass on.
            start_new_session=True,
        )
    try:
        yield Crew(await _until_ready(process, log), folder)
    finally:
        await _end(process)


async def _until_ready(process: Process, log: Path) -> str:
    """The server's address, once `mesh up` has greeted."""
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_WITHIN_S):
            while process.returncode is None:
                if (greeting := _GREETING.search(_read(log))) is not None:
                    return greeting["url"]
                await asyncio.sleep(LOOK_EVERY_S)
    how = "was not ready in time" if process.returncode is None else f"ended with {process.returncode}"
    last = " | ".join(_read(log).strip().splitlines()[-LAST_LINES:])
    raise DeskNotStarted(f"`mesh up` {how}: {last or 'it said nothing'}")


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _read(log: Path) -> str:
    return log.read_text(errors="replace")
