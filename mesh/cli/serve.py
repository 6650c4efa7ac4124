"""`mesh run`: one peer in this process."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import console

if TYPE_CHECKING:
    from mesh.peer import Peer

log = logging.getLogger("mesh.cli")

LATE_AFTER_S = 5.0

Targets = Annotated[
    list[str],
    typer.Argument(metavar="MODULE_OR_FILE...", help="my_agent.py, a module, or either with :attribute."),
]


def run(
    targets: Targets,
    with_stdin: Annotated[
        bool, typer.Option("--until-stdin-ends", hidden=True, help="Drain when standard input is closed.")
    ] = False,
) -> None:
    """Run one peer in this process, hosting every agent found; SIGTERM and Ctrl-C drain it.

    Logs go to standard error, from MESH_LOG_LEVEL up; MESH_LOG_FORMAT=json has one JSON object a line.
    """
    from mesh.telemetry import logs

    logs.set_up(console.settings())

    from mesh.cli.loading import load_agents
    from mesh.peer import Peer

    agents = load_agents(targets)
    peer = Peer(*(agent.hosted for agent in agents), settings=console.reachable())
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(peer, until_stdin_ends=with_stdin))
        # It has drained. A second SIGTERM, which a hook and an orchestrator send each, has no handler from here on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


async def _serve(peer: "Peer", *, until_stdin_ends: bool) -> None:
    loop = asyncio.get_running_loop()
    late = loop.call_later(LATE_AFTER_S, _tell_if_late, peer)
    if until_stdin_ends:
        # A thread of its own, which may stay in its read when the process ends.
        threading.Thread(target=_stop_at_end, args=(loop, peer.stop), name="mesh-stdin", daemon=True).start()
    try:
        await peer.run()
    finally:
        late.cancel()


def _tell_if_late(peer: "Peer") -> None:
    if not peer.bus.is_connected:
        log.warning("no NATS server answers yet; trying on")


def _stop_at_end(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    # Not `sys.stdin`, whose lock the interpreter wants when it ends.
    while os.read(sys.stdin.fileno(), 4_096):
        pass
    loop.call_soon_threadsafe(stop)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
