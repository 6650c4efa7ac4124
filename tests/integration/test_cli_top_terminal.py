"""`mesh top` in a terminal of 80x24: eight peers under load, one killed, the server away and back."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import MeshError
from mesh import Mesh
from mesh.fibers import serving
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.fixtures import fresh_settings
from mesh.testing.fleet import Fleet, send_signal
from mesh.testing.history import History
from mesh.testing.terminal import Terminal, is_installed, terminal

pytestmark = pytest.mark.skipif(
    not is_installed() and os.environ.get("CI") != "true", reason="tmux is not installed (package tmux)"
)

PEERS = 8
AGENTS = """
import asyncio
from mesh import Agent, Context

desk = Agent("desk", version="1", owner="care")
stock = Agent("stock", version="2", owner="sales")

@desk.handles("triage", concurrency=4)
async def triage(number: int, ctx: Context) -> int:
    return await ctx.call(lookup, number)

@stock.handles("lookup", concurrency=2)
async def lookup(number: int) -> int:
    await asyncio.sleep(0.02)
    return number
"""


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server() as own:
        yield own


@asynccontextmanager
async def fleet(settings: Settings, folder: Path) -> AsyncIterator[tuple[Fleet, dict[str, str]]]:
    (folder / "crew.py").write_text(AGENTS)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    chosen = ("nats_url", "prefix", "stream_bytes_max", "objects_bytes_max", "events_bytes_max", "beat_s")
    env |= {f"MESH_{name.upper()}": str(getattr(settings, name)) for name in chosen}
    command, history = (sys.executable, "-m", "mesh", "run", "crew.py"), History(folder / "history.jsonl")
    peers = Fleet(command, size=PEERS, env=env, cwd=folder, history=history)
    async with peers.running():
        yield peers, env


async def _load(mesh: Mesh) -> None:
    """About 40 tasks a second, each with a child."""
    number = 0
    while True:
        with suppress(MeshError):
            await mesh.submit("triage", number)
        number += 1
        await asyncio.sleep(0.025)


def _row(screen: str, name: str) -> list[str]:
    """The cells of a row: words that more than one space keeps apart."""
    line = next((line for line in screen.splitlines() if line.strip().startswith(name)), "")
    return re.split(r"\s{2,}", line.strip())


async def _until(opened: Terminal, condition: Any, *, within_s: float = 30.0) -> str:
    """The first screen of which a condition holds."""

    async def found() -> str:
        screen = await opened.screen()
        return screen if condition(screen) else ""

    try:
        return await eventually(found, within_s=within_s, every_s=0.1)
    except AssertionError:
        raise AssertionError(f"the screen is still\n{await opened.screen()}") from None


@pytest.mark.timeout(180)
async def test_an_operator_sees_what_is_done_who_is_gone_and_when_nothing_is_known(
    server: LocalServer, tmp_path: Path
) -> None:
    settings = fresh_settings(server.url)
    command = [sys.executable, "-m", "mesh", "top"]
    async with fleet(settings, tmp_path) as (peers, env), Mesh.connect(settings=settings, name="web") as mesh:
        # A terminal without colours, in a shell that exports the size it had.
        env = env | {"NO_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
        await eventually(lambda: _ready(mesh), within_s=60)
        async with terminal(command, env=env, cwd=tmp_path) as opened, serving(_load(mesh)):
            eight = await _until(opened, lambda screen: "8 live peers" in screen, within_s=60)
            # Each task has one child; the first rates are of beats that came before the load was even.
            loaded = await _until(opened, _is_even, within_s=60)
            assert len(eight.splitlines()) <= 24
            assert _row(loaded, "triage")[1] == "ok"

            await opened.press("2")
            await _until(opened, lambda screen: "[2 peers]" in screen and screen.count(" ready ") == PEERS)
            victim = peers.pids[0]
            send_signal(victim, signal.SIGKILL)
            # The fleet replaces it; the one that was killed falls silent.
            await _until(opened, lambda screen: re.search(rf"-{victim}-\w+\s+(silent|gone)", screen))

            await opened.press("1", "Down", "p")
            await _until(opened, lambda screen: "in the whole mesh?" in screen)
            await opened.press("n")
            await opened.press("Enter")
            await _until(opened, lambda screen: "owner care" in screen and "answered" in screen)
            await opened.press("Escape")

            server.kill()
            await _until(opened, lambda screen: "NOT CONNECTED since" in screen and "? live peers" in screen)
            server.restart()
            back = await _until(
                opened, lambda screen: "NOT CONNECTED" not in screen and "8 live peers" in screen, within_s=60
            )
            assert "? answers" not in back
            await opened.resize(140, 40)
            await _until(opened, lambda screen: "owner" in screen and "bulk" in screen)
            await opened.press("q")
            await eventually(opened.has_ended)


async def _ready(mesh: Mesh) -> bool:
    from mesh.cli.fleet import describe

    return len(await describe(mesh.bus, within_s=0.3)) == PEERS


def _is_even(screen: str) -> bool:
    asked, answered = _rate(screen, "triage"), _rate(screen, "lookup")
    return asked > 15 and abs(asked - answered) < asked / 3


def _rate(screen: str, capability: str) -> float:
    cells = _row(screen, capability)
    try:
        return float(cells[4].replace(",", ""))
    except (IndexError, ValueError):
        return 0.0
