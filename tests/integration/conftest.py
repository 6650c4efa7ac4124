"""The command line as its users meet it: a process of its own, in a folder of its own."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh.settings import Settings

ENDS_WITHIN_S = 25


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)


@dataclass
class CommandLine:
    """`mesh` in a folder, with the settings of one test."""

    folder: Path
    variables: dict[str, str]
    started: list[int] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, *arguments: str, stdin: str | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        """A command while it runs; ended with the block, if it has not ended itself."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh", *arguments),
            cwd=self.folder,
            env=self.variables,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.started.append(process.pid)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def __call__(self, *arguments: str, stdin: str = "") -> Ended:
        async with self.running(*arguments) as process, asyncio.timeout(ENDS_WITHIN_S):
            out, err = await process.communicate(stdin.encode())
            assert process.returncode is not None
            return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line in an empty folder, with no server named."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    line = CommandLine(tmp_path, variables)
    yield line
    for pid in line.started:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for below in process.children(recursive=True):
                below.kill()
            process.kill()


@pytest.fixture
def command_line(alone: CommandLine, settings: Settings) -> CommandLine:
    """The command line with the test's own mesh on the session's server."""
    alone.variables |= {
        "MESH_NATS_URL": settings.nats_url or "",
        "MESH_PREFIX": settings.prefix,
        "MESH_STREAM_BYTES_MAX": str(settings.stream_bytes_max),
        "MESH_OBJECTS_BYTES_MAX": str(settings.objects_bytes_max),
        "MESH_EVENTS_BYTES_MAX": str(settings.events_bytes_max),
        "MESH_ACK_WAIT_S": str(settings.ack_wait_s),
        "MESH_BEAT_S": str(settings.beat_s),
        "MESH_GRACE_S": str(settings.grace_s),
    }
    return alone
