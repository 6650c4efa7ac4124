"""Peers as processes: one that ends is replaced, as an orchestrator would."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from mesh.testing.history import Entry, History, What

END_WITHIN_S = 30.0


class Fleet:
    """Peers as processes. One that ends is replaced, as an orchestrator would, until the fleet is left.

    `envs` are more variables, for each place in the fleet. A peer's standard input ends with this process, so that it
    can tell when it is left behind.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: int,
        env: Mapping[str, str],
        cwd: Path,
        history: History,
        log: Path | None = None,
        envs: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._command = command
        self._size = size
        self._envs = [{**env, **(envs[place] if place < len(envs) else {})} for place in range(size)]
        self._cwd = cwd
        self._history = history
        self._log = log
        self._processes: list[asyncio.subprocess.Process] = []
        self._spawned: list[int] = []
        self._leaving = asyncio.Event()
        self._may_start = asyncio.Event()
        self._may_start.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Fleet"]:
        """The peers until left; then they are told to drain, and those that do not end are killed."""
        async with asyncio.TaskGroup() as fibers:
            for place in range(self._size):
                fibers.create_task(self._keep_one(place))
            try:
                yield self
            finally:
                self._leaving.set()
                self._may_start.set()
                for process in self._processes:
                    send_signal(process.pid, signal.SIGCONT)
                    send_signal(process.pid, signal.SIGTERM)
                # Here and not as a fiber: one that fails, or a block that does, would end it with the others.
                await self._end()

    @asynccontextmanager
    async def away(self, signum: int = signal.SIGKILL) -> AsyncIterator[None]:
        """Every peer ended, and none started, until left; then as many start as before."""
        self._may_start.clear()
        try:
            for process in list(self._processes):
                send_signal(process.pid, signum)
            for process in list(self._processes):
                await process.wait()
            yield
        finally:
            self._may_start.set()

    @property
    def pids(self) -> list[int]:
        """Processes that run now."""
        return [process.pid for process in self._processes if process.returncode is None]

    @property
    def spawned(self) -> list[int]:
        """Every process that was ever started, the first ones first."""
        return list(self._spawned)

    async def _keep_one(self, place: int) -> None:
        while not self._leaving.is_set():
            await self._may_start.wait()
            if self._leaving.is_set():
                return
            process = await self._start(place)
            self._processes.append(process)
            self._spawned.append(process.pid)
            if self._leaving.is_set():
                send_signal(process.pid, signal.SIGTERM)
            elif not self._may_start.is_set():
                send_signal(process.pid, signal.SIGKILL)
            code = await process.wait()
            self._history.add(Entry(What.ENDED, peer=str(process.pid), detail=str(code)))
            self._processes.remove(process)

    async def _start(self, place: int) -> asyncio.subprocess.Process:
        output = self._log or Path(os.devnull)
        with output.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._command,
                env=self._envs[place],
                cwd=self._cwd,
                stdin=subprocess.PIPE,
                stdout=log if self._log else None,
                stderr=subprocess.STDOUT if self._log else None,
                # A session of its own: Ctrl-C is for us to hear, and to pass on.
                start_new_session=True,
            )

    async def _end(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WITHIN_S):
                for process in list(self._processes):
                    await process.wait()
        for process in list(self._processes):
            send_signal(process.pid, signal.SIGKILL)
            await process.wait()


def send_signal(pid: int, signum: int) -> None:
    """Signal a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
