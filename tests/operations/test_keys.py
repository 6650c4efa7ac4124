"""Keys change while a mesh works: no task is lost, and a peer whose key was taken away says so and ends."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh import Agent
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import free_ports
from mesh.testing.servers import configured_server
from tests.operations.accounts import User, mesh_accounts, settings_of, user

TASKS = 60
AGENT = """
from mesh import Agent

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


def configuration(port: int, users: Sequence[User]) -> str:
    return f"""
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: store }}
accounts {{
{mesh_accounts("mesh", users)}}}
"""


async def test_a_new_key_beside_the_old_one_a_restart_and_the_old_one_gone_lose_no_task(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    old, new, client = (user(tmp_path, name) for name in ("old", "new", "client"))
    with configured_server(tmp_path / "server", configuration(port, [old, client]), port=port) as server:
        async with Mesh.connect(settings=settings_of(client, port)) as mesh, asyncio.TaskGroup() as fibers:
            async with hosting(agent("with the old key"), settings=settings_of(old, port)) as before:
                tasks = [
                    fibers.create_task((await mesh.submit("count", number, returns=str)).result())
                    for number in range(TASKS)
                ]

                server.reload(configuration(port, [old, new, client]))
                kept = before.bus.reconnects
                after = hosting(agent("with the new key"), settings=settings_of(new, port))
                await after.__aenter__()
            server.reload(configuration(port, [new, client]))
            answers = [await task for task in tasks]
            await after.__aexit__(None, None, None)

    assert kept == 0
    assert set(answers) == {"with the old key", "with the new key"}
    assert len(answers) == TASKS


async def test_a_peer_whose_key_was_taken_away_ends_and_says_why(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    gone, client = user(tmp_path, "gone"), user(tmp_path, "client")
    (tmp_path / "late.py").write_text(AGENT)
    with configured_server(tmp_path / "server", configuration(port, [gone, client]), port=port) as server:
        async with Mesh.connect(settings=settings_of(client, port)) as mesh:
            peer = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mesh", "run", "late.py"),
                cwd=tmp_path,
                env=environment(settings_of(gone, port)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            await (await mesh.submit("late", 1, returns=int)).result()

            server.reload(configuration(port, [client]))
            _, told = await peer.communicate()

    print(told.decode())
    assert peer.returncode == 3
    assert b"the connection was closed for good" in told


def environment(settings: Settings) -> dict[str, str]:
    told = settings.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}}
