"""`mesh drain`: a peer's process is told to end, and its end waited for."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh import Mesh
from mesh.cli.drain import is_peer
from mesh.local.server import binary
from mesh.testing import eventually
from tests.holding import until_it_runs, written

UNREACHABLE = "nats://127.0.0.1:9"


@pytest.fixture
def held_agent(tmp_path: Path) -> str:
    return written(tmp_path)


async def told(process: asyncio.subprocess.Process, words: bytes) -> None:
    """Return when a process has said the words on standard error."""
    assert process.stderr is not None
    while words not in (line := await process.stderr.readline()):
        assert line, f"it ended before it said {words!r}"


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


async def test_a_drained_peer_finishes_what_it_runs_before_it_ends(
    command_line: Any, mesh: Mesh, held_agent: str, tmp_path: Path
) -> None:
    async with command_line.running("run", held_agent) as peer:
        await told(peer, b" serves ")
        task = await mesh.submit("hold", str(tmp_path / "until"))
        await until_it_runs(task)
        async with command_line.running("drain", "--pid", str(peer.pid)) as drain:
            await told(peer, b" drains: 1 running")
            (tmp_path / "until").touch()
            _, error = await drain.communicate()

        assert (drain.returncode, error) == (0, b"")
        assert await peer.wait() == 0
        assert await task.result(within_s=10) == "done"


async def test_drain_says_when_the_peer_takes_longer_and_leaves_it_draining(
    command_line: Any, mesh: Mesh, held_agent: str, tmp_path: Path
) -> None:
    command_line.variables["MESH_GRACE_S"] = "60"
    async with command_line.running("run", held_agent) as peer:
        await told(peer, b" serves ")
        task = await mesh.submit("hold", str(tmp_path / "until"))
        await until_it_runs(task)
        first = await command_line("drain", "--pid", str(peer.pid), "--within", "0")
        (tmp_path / "until").touch()
        second = await command_line("drain", "--pid", str(peer.pid))

        assert first.code == 4
        assert f"process {peer.pid} has not ended after 0 s; it was told to" in first.err
        assert second.code in (0, 1), second  # it may have ended, and been collected, before it was asked for again
        assert await peer.wait() == 0
        assert await task.result(within_s=10) == "done"


async def test_a_peer_that_is_told_twice_ends_as_one_that_is_told_once(
    command_line: Any, mesh: Mesh, held_agent: str
) -> None:
    async with command_line.running("run", held_agent) as peer:
        await told(peer, b" serves ")

        while peer.returncode is None:
            # Not the process's own method, which would collect its end before asyncio does.
            with suppress(ProcessLookupError):
                os.kill(peer.pid, signal.SIGTERM)
            await asyncio.sleep(0.002)

        assert peer.returncode == 0


async def test_what_is_no_peer_is_not_signalled(alone: Any) -> None:
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    try:
        drained = await alone("drain", "--pid", str(other.pid))

        assert drained.code == 1
        assert f"process {other.pid} is no peer but" in drained.err
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_a_process_that_does_not_exist_is_named(alone: Any) -> None:
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await gone.wait()

    drained = await alone("drain", "--pid", str(gone.pid))

    assert (drained.code, drained.err) == (1, f"mesh: there is no process {gone.pid}\n")


async def test_a_process_that_has_ended_and_waits_for_its_parent_is_drained(alone: Any) -> None:
    program = "import subprocess, sys, time; p = subprocess.Popen(['true']); print(p.pid, flush=True); time.sleep(60)"
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        await eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)

        drained = await alone("drain", "--pid", str(pid))

        assert (drained.code, drained.err) == (0, f"process {pid} has ended already\n")
    finally:
        parent.kill()
        await parent.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
async def test_a_peer_of_another_user_is_left_alone(command_line: Any, mesh: Mesh, held_agent: str) -> None:
    as_other = {"user": 10_001, "group": 10_001, "extra_groups": [], "env": command_line.variables}
    try:
        able = await asyncio.create_subprocess_exec(sys.executable, "-c", "import mesh.cli.drain", **as_other)
    except PermissionError:
        pytest.skip("this interpreter is root's alone")
    if await able.wait():
        pytest.skip("this interpreter or its packages are root's alone")
    async with command_line.running("run", held_agent) as peer:
        await told(peer, b" serves ")
        drain = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh", "drain", "--pid", str(peer.pid)), stderr=asyncio.subprocess.PIPE, **as_other
        )
        _, error = await drain.communicate()

        assert drain.returncode == 1
        assert f"process {peer.pid} belongs to somebody else".encode() in error
        assert await (await mesh.submit("hold", "/")).result(within_s=10) == "done"


async def test_sigterm_ends_a_peer_that_has_found_no_server_yet(command_line: Any, held_agent: str) -> None:
    command_line.variables["MESH_NATS_URL"] = UNREACHABLE
    async with command_line.running("run", held_agent) as peer:
        await told(peer, b"no NATS server answers yet")
        drained = await command_line("drain", "--pid", str(peer.pid))

        assert (drained.code, await peer.wait()) == (0, 0)


async def test_sigterm_ends_a_peer_whose_server_has_no_streams_for_it(
    command_line: Any, held_agent: str, tmp_path: Path
) -> None:
    with plain_server(tmp_path) as address:
        command_line.variables["MESH_NATS_URL"] = address
        async with command_line.running("run", held_agent) as peer:
            await told(peer, b"waits for its streams")
            drained = await command_line("drain", "--pid", str(peer.pid))

            assert (drained.code, await peer.wait()) == (0, 0)


async def test_sigterm_has_a_handler_from_the_start_of_the_command(command_line: Any, held_agent: str) -> None:
    command_line.variables["MESH_NATS_URL"] = UNREACHABLE
    async with command_line.running("run", held_agent) as peer:
        await eventually(lambda: catches_sigterm(peer.pid), every_s=0.001)
        peer.send_signal(signal.SIGTERM)

        # Not what it would be without a handler, which process 1 of a container would not end of.
        assert await peer.wait() in (0, 128 + signal.SIGTERM)


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """A nats-server without JetStream."""
    ports = folder / "ports"
    ports.mkdir()
    process = subprocess.Popen(
        [binary(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (found := [path for path in ports.glob("*.ports") if path.stat().st_size]):
            assert process.poll() is None
        yield json.loads(found[0].read_text())["nats"][0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "is_one"),
    [
        (["/opt/venv/bin/python", "/opt/venv/bin/mesh", "run", "my_agents"], True),
        (["mesh", "run", "my_agents"], True),
        (["python3", "-m", "mesh", "run", "--until-stdin-ends", "a.py"], True),
        (["python3", "-m", "mesh", "up", "a.py"], True),
        (["/usr/bin/python3", "/usr/local/bin/faststream", "run", "my_agent:agent.app"], True),
        (["mesh", "top"], False),
        (["mesh"], False),
        (["vim", "mesh", "notes.txt"], False),
        ([], False),
    ],
)
def test_a_peer_is_told_by_its_command_line(arguments: list[str], is_one: bool) -> None:
    assert is_peer(arguments) is is_one
