"""Where Prometheus finds the peers: what the mesh says, as a file."""

import asyncio
import json
import sys
import urllib.request
from pathlib import Path

from mesh import Agent
from mesh.settings import Settings
from mesh.testing import hosting
from tests.integration.conftest import CommandLine

ROOT = Path(__file__).resolve().parents[2]


def one() -> Agent:
    agent = Agent("one")

    @agent.handles("one")
    async def answer() -> int:
        return 1

    return agent


async def run(command_line: CommandLine, *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops.prometheus.targets", *arguments),
        cwd=command_line.folder,
        env=command_line.variables | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_each_peer_that_answers_is_a_target(command_line: CommandLine, settings: Settings) -> None:
    out = command_line.folder / "peers.json"

    async with hosting(one(), settings=settings) as peer:
        code, _, err = await run(command_line, "--out", str(out))
        (found,) = json.loads(out.read_text())
        (address,) = found["targets"]
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://{address}/metrics")

    assert (code, err) == (0, "")
    assert found["labels"]["instance"] == peer.id
    assert page.status == 200
    page.close()


async def test_without_a_mesh_the_error_says_so(alone: CommandLine) -> None:
    code, _, err = await run(alone, "--out", str(alone.folder / "peers.json"))

    assert code == 1
    assert "mesh up" in err or "MESH_NATS_URL" in err
    assert not (alone.folder / "peers.json").exists()
