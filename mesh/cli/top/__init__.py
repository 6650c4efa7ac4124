"""`mesh top`: a live view of the mesh in a terminal, and one snapshot of it for scripts."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from mesh.bus.connection import Bus
    from mesh.cli.top.facts import Facts

BEATS_HEARD: int = 2
"""For a snapshot: the second one tells rates."""
SNAPSHOT_SLACK_S: float = 0.3


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one snapshot, and end.")] = False,
    every: Annotated[
        float, typer.Option(min=0.2, max=60, metavar="SECONDS", help="How often the screen changes; asking, too.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Watch agents, queues, rates, breakers, limits, the inbox and what is stuck, live.

    Keys: `?` tells them. It needs the extra `top`: pip install 'starling-mesh[top]'. `--once` and `--json` do not.
    """
    if once or as_json:
        console.run(_snapshot(as_json=as_json))
        return
    try:
        import textual  # noqa: F401  # whether it is there
    except ImportError as error:
        from mesh.errors import SetupError

        raise SetupError(
            "mesh top needs Textual: pip install 'starling-mesh[top]'; `mesh top --once` prints a snapshot without it"
        ) from error
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        from mesh.errors import SetupError

        raise SetupError("mesh top needs a terminal; `mesh top --once` prints a snapshot without one")
    console.run(_live(every))


async def _live(every: float) -> None:
    import logging
    import os

    from mesh.cli.top.collector import Collector
    from mesh.cli.top.view import Top

    for exported in ("COLUMNS", "LINES"):
        # They are believed before the terminal is asked, and stay as they were when its window changes.
        os.environ.pop(exported, None)
    # What is logged would be written across the screen, which says the same.
    logging.getLogger().addHandler(logging.NullHandler())
    async with console.connected() as bus:
        await console.check_made(bus)
        facts = _facts(bus)
        async with Collector(bus, facts, slow=every).open():
            app = Top(bus, facts, slow=every)
            await app.run_async(mouse=False)
    if app.return_code:
        raise console.Failed("the screen ended by itself; what is above says why")


async def _snapshot(*, as_json: bool) -> None:
    import asyncio

    from mesh.cli.top import snapshot
    from mesh.cli.top.collector import Collector
    from mesh.cli.top.model import Moment

    async with console.connected() as bus:
        await console.check_made(bus)
        facts = _facts(bus)
        collector = Collector(bus, facts)
        async with collector.hearing():
            await asyncio.sleep(BEATS_HEARD * bus.settings.beat_s + SNAPSHOT_SLACK_S)
            await collector.look_once()
        moment = Moment(time.monotonic(), time.time())
    if as_json:
        console.print_json(snapshot.document(facts, moment))
    else:
        print("\n".join(snapshot.text(facts, moment)))


def _facts(bus: "Bus") -> "Facts":
    from mesh.cli.top.facts import Facts

    url = bus.nc.connected_url
    return Facts(bus.settings.prefix, url.netloc.rpartition("@")[2] if url else "", bus.settings.beat_s)
