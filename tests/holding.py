"""An agent whose tasks take as long as a test wants, for tests that end peers while they work."""

from pathlib import Path
from typing import Any, Final

from mesh.client import Handle
from mesh.testing import eventually
from mesh.whereabouts import Where

AGENT: Final = """
import asyncio
from pathlib import Path

from mesh import Agent

agent = Agent("hold", version="1", owner="tests")


@agent.handles("hold")
async def hold(until: str) -> str:
    while not Path(until).exists():
        await asyncio.sleep(0.02)
    return "done"
"""
"""The source of a module; its capability `hold` is done when the file that it is told exists."""


def written(folder: Path) -> str:
    """The name of the file that the agent is in, in a folder."""
    (folder / "held.py").write_text(AGENT)
    return "held.py"


async def until_it_runs(task: Handle[Any], *, within_s: float = 60.0) -> None:
    """Return when a peer runs the task."""

    async def runs() -> bool:
        return (await task.status()).where is Where.RUNNING

    await eventually(runs, within_s=within_s)
