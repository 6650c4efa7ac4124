"""`mesh demo-agent`: an LLM agent is killed in the middle of its run, goes on elsewhere, and shows its bill."""

import asyncio
import importlib.util
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson
from mesh.cli.demo import TERMINATED, end_on_sigterm

AGENTS: Final = "mesh.cli.demo_agent.researcher"


def demo_agent(
    as_json: AsJson = False,
    peers: Annotated[int, typer.Option(min=2, max=16, help="How many peers, each a process.")] = 3,
) -> None:
    """Kill an LLM agent in the middle of a model call, see another peer go on, and read the bill.

    It uses a server and peers of its own, and leaves nothing behind. The model is rehearsed, on a local endpoint
    that counts; with MESH_LLM_BASE_URL and MESH_LLM_MODEL set, it is that one.

    The exit code is 1 if the question was not answered, or more was paid twice than the call under way.
    """
    from mesh.errors import SetupError

    if importlib.util.find_spec("pydantic_ai") is None:
        raise SetupError("the demo's agent needs pydantic-ai: pip install 'starling-mesh[llm,local]'")
    try:
        is_sound = console.run(_perform(as_json=as_json, count=peers))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    raise typer.Exit(console.OK if is_sound else console.FAILED)


async def _perform(*, as_json: bool, count: int) -> bool:
    """The whole demo; whether the promises held."""
    from rich.console import Console

    from mesh.bus.connection import Bus
    from mesh.cli.demo.journey import default_settings
    from mesh.cli.demo.peers import peers_running, until_ready
    from mesh.cli.demo_agent import journey, report
    from mesh.cli.demo_agent.endpoint import endpoint
    from mesh.local.server import local_server

    end_on_sigterm()
    screen = report.Screen(Console(stderr=True), is_quiet=as_json)
    with tempfile.TemporaryDirectory(prefix="mesh-demo-") as scratch, local_server(Path(scratch, "store")) as server:
        folder, settings = Path(scratch), default_settings(server.url)
        async with (
            endpoint(folder) as llm,
            peers_running(AGENTS, count=count, url=server.url, folder=folder, more=llm.variables) as processes,
            Bus.connect(settings, "observer") as bus,
        ):
            described = await until_ready(bus, processes)
            screen.remark(f"{count} peers, each a process, on a NATS server at {server.url}; model {llm.model}.")
            screen.remark(f"[bold]{journey.QUESTION}[/]\n")
            stage = journey.Stage(bus, settings, llm, processes, described, screen.remark)
            listener = journey.Listener(screen.text, screen.tool, screen.restart)
            summary = await journey.travel(stage, listener)
    if as_json:
        console.print_json(summary)
    else:
        report.show(summary)
    return summary.is_sound
