"""`mesh up` and `mesh run`: real processes that are killed, restarted and ended, and leave nothing behind."""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mesh import Mesh
from mesh.settings import Settings
from mesh.testing import eventually

AGENT = '''
from pathlib import Path

from mesh import Agent, Context

agent = Agent("greeter", version="1.0.0")


@agent.handles("greet")
async def greet(name: str) -> str:
    """Say hello."""
    print("greeting", name, flush=True)
    return f"hello {name}"


@agent.handles("hold")
async def hold(folder: str, ctx: Context) -> str:
    """Wait until the folder holds a file `go`."""
    import asyncio

    Path(folder, "held").touch()
    while not Path(folder, "go").exists():
        await asyncio.sleep(0.02)
    return "held"
'''


class Up:
    """A running `mesh up`, and everything it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.err = ""

    async def read(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None

        async def take(stream: asyncio.StreamReader, name: str) -> None:
            while chunk := await stream.read(65_536):
                setattr(self, name, getattr(self, name) + chunk.decode())

        async with asyncio.TaskGroup() as readers:
            readers.create_task(take(self.process.stdout, "out"))
            readers.create_task(take(self.process.stderr, "err"))

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def peers(self) -> list[psutil.Process]:
        return [process for process in self.below() if "--until-stdin-ends" in process.cmdline()]

    async def says(self, text: str) -> None:
        await eventually(lambda: text in self.out)


@asynccontextmanager
async def _up(line: Any, *arguments: str) -> AsyncIterator[Up]:
    async with line.running("up", *arguments) as process, asyncio.TaskGroup() as fibers:
        up = Up(process)
        reading = fibers.create_task(up.read())
        yield up
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await reading


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_agent.py"
    path.write_text(AGENT)
    return path


async def test_up_is_a_whole_mesh_that_says_what_to_type_next(alone: Any, agent_file: Path) -> None:
    async with _up(alone, "my_agent.py", "--replicas", "2") as up:
        await up.says("Ctrl-C ends it")
        typed = next(line.strip() for line in up.out.splitlines() if "mesh submit greet" in line)
        _, *arguments = shlex.split(typed)
        submitted = await alone(*arguments)
        agents = (await alone("agents", "--json")).document["peers"]
        doctor = await alone("doctor", "--json")
        started = up.below()

    assert "greet  Say hello." in up.out
    assert (submitted.code, submitted.out) == (0, '"hello text"\n')
    assert "| greeting text" in up.out, "what handlers print is relayed"
    assert sorted(peer["beat"]["peer"].split("-")[1] for peer in agents) == ["1", "2"]
    assert doctor.code == 0
    assert "the last 1 s (the server of `mesh up`)" in doctor.out
    assert up.process.returncode == 0
    assert len(started) >= 3
    assert not [process for process in started if process.is_running()]
    assert not (alone.folder / ".mesh" / "server.json").exists()


async def test_a_killed_peer_is_started_again(alone: Any, agent_file: Path) -> None:
    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        (peer,) = up.peers()
        peer.kill()
        await up.says("peer-1 ended (SIGKILL); it starts again")

        submitted = await alone("submit", "greet", '"Ann"')

    assert submitted.out == '"hello Ann"\n'


async def test_the_store_is_kept_across_runs(alone: Any, agent_file: Path) -> None:
    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        await alone("submit", "greet", '"Ann"', "--key", "k1")

    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        again = await alone("submit", "greet", '"Ann"', "--key", "k1")

    assert again.out == '"hello Ann"\n'
    assert "this started nothing" in again.err
    assert "greeting" not in up.out


async def test_ctrl_c_lets_peers_finish_before_the_server_goes(alone: Any, agent_file: Path, tmp_path: Path) -> None:
    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        folder = json.dumps(str(tmp_path))
        await alone("submit", "hold", folder, "--key", "h1", "--no-wait")
        await eventually((tmp_path / "held").exists)

        up.process.send_signal(signal.SIGINT)
        await up.says("ending:")
        await eventually(lambda: "drains: 1 running" in up.err)
        (tmp_path / "go").touch()
        await up.process.wait()

    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        result = await alone("status", "hold/h1", "--json")

    assert result.document["where"] == "done"
    assert result.document["attempt"] == 1


async def test_a_file_that_cannot_be_loaded_ends_the_command(alone: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import mesh\nagent = mesh.Agent(nam='x')\n")

    async with _up(alone, "broken.py", "--replicas", "2") as up:
        await up.process.wait()

    assert up.process.returncode == 2
    assert "broken.py" in up.err
    assert "TypeError" in up.err
    assert "Traceback" not in up.err


async def test_a_folder_has_one_mesh(alone: Any, agent_file: Path) -> None:
    async with _up(alone, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")

        second = await alone("up", "my_agent.py")
        (alone.folder / ".mesh" / "server.json").unlink()
        on_its_store = await alone("up", "my_agent.py")

    assert second.code == 1
    assert "a mesh runs in this folder already" in second.err
    assert on_its_store.code == 2
    assert "is in use by a nats-server" in on_its_store.err


async def test_peers_end_when_their_up_is_killed(command_line: Any, agent_file: Path) -> None:
    async with _up(command_line, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        peers = up.peers()

        up.process.kill()

        await eventually(lambda: not any(peer.is_running() for peer in peers))


async def test_up_with_a_server_named_starts_peers_alone(command_line: Any, agent_file: Path, mesh: Mesh) -> None:
    async with _up(command_line, "my_agent.py") as up:
        await up.says("Ctrl-C ends it")
        names = [process.name() for process in up.below()]
        value = await (await mesh.submit("greet", "Ann")).result(within_s=10)

    assert value == "hello Ann"
    assert "nats-server" not in names
    assert not (command_line.folder / ".mesh").exists()


async def test_run_finishes_what_it_runs_when_told_to_end(
    command_line: Any, agent_file: Path, tmp_path: Path, mesh: Mesh, settings: Settings
) -> None:
    async with command_line.running("run", "my_agent:agent") as process:
        handle = await mesh.submit("hold", str(tmp_path))
        await eventually((tmp_path / "held").exists)
        process.terminate()
        assert process.stderr is not None
        while b"drains: 1 running" not in await process.stderr.readline():
            continue
        (tmp_path / "go").touch()
        assert await handle.result(within_s=10) == "held"
        _, err = await process.communicate()

    assert process.returncode == 0
    assert b"Traceback" not in err


async def test_run_refuses_what_is_no_agent_or_no_setting(alone: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")

    missing = await alone("run", "nowhere.py")
    empty = await alone("run", "empty.py")
    alone.variables["MESH_LOG_LEVEL"] = "LOUD"
    loud = await alone("run", "empty.py")

    assert (missing.code, empty.code, loud.code) == (2, 2, 2)
    assert "nowhere.py" in missing.err
    assert "no agent" in empty.err
    assert "MESH_LOG_LEVEL is 'LOUD'" in loud.err


def test_the_entry_point_needs_no_agent_framework_for_help() -> None:
    program = "import sys, mesh.cli.main; print([m for m in ('nats', 'faststream', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"
