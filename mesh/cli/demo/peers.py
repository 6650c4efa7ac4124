"""Peers as processes: started as a user would start them, known by what they say of themselves, ended by pid."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Final

from contracts.card import Described, PeerState
from mesh.bus.connection import Bus
from mesh.cli.fleet import describe
from mesh.errors import SetupError

READY_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 10.0
ASK_WITHIN_S: Final = 0.5
ASK_AGAIN_S: Final = 0.05
LAST_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class PeerProcess:
    """One peer process. `number` counts from 1, for people."""

    number: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        return " | ".join(lines) or "it said nothing"

    def __str__(self) -> str:
        return f"peer {self.number}"


@asynccontextmanager
async def peers_running(
    target: str, *, count: int, url: str, folder: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[list[PeerProcess]]:
    """Processes of `mesh run TARGET` with shipped defaults, until left; their logs go to `folder`.

    `more` are variables of their environment.
    """
    peers: list[PeerProcess] = []
    try:
        for number in range(1, count + 1):
            peers.append(await _start(target, number=number, url=url, folder=folder, more=more or {}))  # noqa: PERF401  # those started are known if one fails
        yield peers
    finally:
        await _stop(peers)


async def until_ready(bus: Bus, peers: list[PeerProcess]) -> dict[str, Described]:
    """What each peer says of itself, by peer id, once all of them take work.

    Raises:
        SetupError: one ended, or not all are ready in time; the message has the end of its log.
    """
    pids = {peer.pid for peer in peers}
    give_up_at = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up_at:
        for peer in peers:
            if not peer.is_running:
                raise SetupError(f"{peer} ended with {peer.process.returncode} at its start: {peer.last_words()}")
        ready = {
            found.beat.peer: found
            for found in await describe(bus, within_s=ASK_WITHIN_S, enough=len(peers))
            if found.beat.pid in pids and found.beat.state is PeerState.READY
        }
        if len(ready) == len(peers):
            return ready
        await asyncio.sleep(ASK_AGAIN_S)
    raise SetupError(f"the peers were not ready within {READY_WITHIN_S:g} s: {peers[0].last_words()}")


async def _start(target: str, *, number: int, url: str, folder: Path, more: Mapping[str, str]) -> PeerProcess:
    log = folder / f"peer-{number}.log"
    # What the reader set for a mesh of their own has no say in this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "mesh", "run", "--until-stdin-ends", target),
            # It ends with us, so that no peer outlives a demo that was killed.
            stdin=PIPE,
            stdout=output,
            stderr=STDOUT,
            cwd=folder,
            env={**inherited, "MESH_NATS_URL": url, "MESH_PEER_NAME": f"demo-{number}", **more},
            # A session of its own: Ctrl-C is ours to hear, and to pass on.
            start_new_session=True,
        )
    return PeerProcess(number, process, log)


async def _stop(peers: Iterable[PeerProcess]) -> None:
    living = [peer for peer in peers if peer.is_running]
    for peer in living:
        _signal(peer, signal.SIGTERM)
        _signal(peer, signal.SIGCONT)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                for peer in living:
                    await peer.process.wait()
    finally:
        for peer in living:
            if peer.is_running:
                _signal(peer, signal.SIGKILL)
    for peer in living:
        await peer.process.wait()


def _signal(peer: PeerProcess, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        peer.process.send_signal(signum)
