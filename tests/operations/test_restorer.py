"""A backup across the accounts, and who may put it back."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from mesh import Agent
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import hosting
from mesh.testing.cluster import free_ports
from mesh.testing.servers import configured_server
from tests.operations.access import Access, generated

ACCESS: dict[str, Any] = {
    "meshes": {
        "mesh": {
            "peers": {"desk": {"handles": ["count"]}},
            "clients": {"shop": {"calls": ["count"]}},
            "operators": ["ops"],
            "restorers": ["vault"],
        }
    }
}

agent = Agent("desk", version="1")


@agent.handles("count")
async def count(number: int) -> int:
    return number + 1


async def command(settings: Settings, *arguments: str) -> tuple[int, str]:
    """The exit code of `mesh`, run by a user, and what it said."""
    told = settings.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", *arguments),
        env={**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def configuration(port: int, access: Access) -> str:
    return f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: store }}\n{access.accounts}'


async def test_an_operator_backs_a_mesh_up_and_only_a_restorer_puts_it_back(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    access = generated(tmp_path, ACCESS)
    ops, vault, shop = (access.settings(user, port) for user in ("ops", "vault", "shop"))
    desk, kept = access.settings("desk", port), str(tmp_path / "kept")
    with configured_server(tmp_path / "server", configuration(port, access), port=port):
        made = await command(ops, "topology", "apply", "--capability", "count")
        async with hosting(agent, settings=desk), Mesh.connect(settings=shop) as mesh:
            await (await mesh.submit(count, 1, key="before")).result(within_s=20)
        async with Mesh.connect(settings=shop) as mesh:
            await mesh.submit(count, 2, key="waits")

        backed_up = await command(ops, "backup", kept)
        refused = await command(ops, "restore", kept, "--replace")
        restored = await command(vault, "restore", kept, "--replace", "--resume")

        async with hosting(agent, settings=desk), Mesh.connect(settings=shop) as mesh:
            before = await mesh.submit(count, 1, key="before")
            answers = [
                await before.result(within_s=20),
                await (await mesh.submit(count, 2, key="waits")).result(within_s=30),
            ]

    assert made[0] == 0, made[1]
    assert backed_up[0] == 0, backed_up[1]
    assert refused[0] != 0
    assert "one of the `restorers`" in refused[1]
    assert restored[0] == 0, restored[1]
    assert not before.is_new
    assert answers == [2, 3]
