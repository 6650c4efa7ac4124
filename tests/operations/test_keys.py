"""Keys change while a mesh works: no task is lost, and a peer whose key was taken away takes no work."""

import asyncio
import copy
import http.client
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mesh import Agent
from mesh.bus import topology
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import free_ports
from mesh.testing.servers import configured_server
from tests.operations.access import Access, generated

TASKS = 60
AGENT = """
from mesh import Agent
from mesh.bus import topology

agent = Agent("late", version="1")

@agent.handles("late")
async def late(number: int) -> int:
    return number
"""


def agent(name: str) -> Agent:
    made = Agent(name, version="1")

    @made.handles("count", concurrency=2)
    async def count(number: int) -> str:
        await asyncio.sleep(0.03)  # long enough to be in the middle of while keys change
        return name

    return made


ACCESS: dict[str, Any] = {
    "meshes": {
        "mesh": {
            "peers": {"desk": {"handles": ["count", "late"]}, "gone": {"handles": ["late"]}},
            "clients": {"shop": {"calls": ["count", "late"]}},
            "operators": ["ops"],
        }
    }
}


def configuration(port: int, access: Access) -> str:
    return f"""
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: store }}
{access.accounts}
"""


def without(user: str) -> dict[str, Any]:
    """The access file without a peer."""
    access = copy.deepcopy(ACCESS)
    del access["meshes"]["mesh"]["peers"][user]
    return access


@asynccontextmanager
async def made(operator: Settings) -> AsyncIterator[None]:
    """Streams and consumers, as `mesh topology apply` makes them."""
    specs = [spec for name in ("count", "late") for spec in topology.of_capability(operator, name)]
    async with Mesh.connect(settings=operator) as mesh:
        await topology.ensure(mesh.bus, (*topology.of_mesh(operator), *specs))
    yield


async def test_a_new_key_beside_the_old_one_a_restart_and_the_old_one_gone_lose_no_task(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    access = generated(tmp_path, ACCESS)
    with configured_server(tmp_path / "server", configuration(port, access), port=port) as server:
        async with (
            made(access.settings("ops", port)),
            Mesh.connect(settings=access.settings("shop", port)) as mesh,
            asyncio.TaskGroup() as fibers,
        ):
            async with hosting(agent("with the old key"), settings=access.settings("desk", port)) as before:
                tasks = [
                    fibers.create_task((await mesh.submit("count", number, returns=str)).result())
                    for number in range(TASKS)
                ]

                await asyncio.to_thread(access.mesh_auth, "rotate", "desk")
                server.reload(configuration(port, access))
                kept = before.bus.reconnects
                after = hosting(agent("with the new key"), settings=access.settings("desk", port))
                await after.__aenter__()
                tasks += [
                    fibers.create_task((await mesh.submit("count", number, returns=str)).result())
                    for number in range(TASKS, 2 * TASKS)
                ]
            await asyncio.to_thread(access.mesh_auth, "retire", "desk")
            server.reload(configuration(port, access))
            answers = [await task for task in tasks]
            await after.__aexit__(None, None, None)

    assert kept == 0
    assert set(answers) == {"with the old key", "with the new key"}
    assert len(answers) == 2 * TASKS


async def test_a_peer_whose_key_was_taken_away_takes_no_work_and_a_client_is_told_why(tmp_path: Path) -> None:
    (port, page) = free_ports(2)
    access = generated(tmp_path, ACCESS)
    (tmp_path / "late.py").write_text(AGENT)
    with configured_server(tmp_path / "server", configuration(port, access), port=port) as server:
        async with (
            made(access.settings("ops", port)),
            Mesh.connect(settings=access.settings("shop", port)) as mesh,
            running("run", "late.py", folder=tmp_path, settings=access.settings("gone", port, http_port=page)) as peer,
        ):
            await (await mesh.submit("late", 1, returns=int)).result()
            assert await asyncio.to_thread(status, page) == 200

            server.reload(configuration(port, generated(tmp_path, without("gone"))))
            await eventually(lambda: is_unready(page))
            waits = await mesh.submit("late", 2, returns=int)
            async with running(
                "agents", folder=tmp_path, settings=access.settings("gone", port, connect_within_s=1)
            ) as asking:
                _, told = await asking.communicate()
            (tmp_path / "late2.py").write_text(AGENT)
            async with running("run", "late2.py", folder=tmp_path, settings=access.settings("desk", port)):
                answer = await waits.result()

            assert peer.returncode is None
            assert (tmp_path / "mesh.log").read_text().count("the server does not let this user in") == 1

    assert answer == 2
    assert asking.returncode == 3
    assert b"Authorization Violation" in told


async def is_unready(page: int) -> bool:
    return await asyncio.to_thread(status, page) == 503


def status(page: int) -> int:
    """What a peer's /readyz answers."""
    connection = http.client.HTTPConnection("127.0.0.1", page, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


@asynccontextmanager
async def running(*command: str, folder: Path, settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """`mesh` as a process until left."""
    with (folder / "mesh.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh", *command),
            cwd=folder,
            env=environment(settings),
            stdout=log,
            stderr=log if command[0] == "run" else asyncio.subprocess.PIPE,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def environment(settings: Settings) -> dict[str, str]:
    told = settings.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}}
