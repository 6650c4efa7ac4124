"""A peer of a game day: any agents, with a history of their runs, and an `Unrest` that takes orders."""

import asyncio
import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mesh.agent import Agent
from mesh.fibers import serving
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing.chaos import agents as built_in
from mesh.testing.history import Entry, History, What
from mesh.testing.hosting import eventually
from mesh.testing.unrest import Unrest

READY_WITHIN_S = 300.0


class Briefing(msgspec.Struct, frozen=True):
    """What a peer process is told. Its settings come from the environment."""

    history: str
    orders: str
    seed: int
    targets: tuple[str, ...]


async def serve(briefing: Briefing, agents: Sequence[Agent]) -> None:
    """Be a peer until told to leave, or until standard input ends: whoever started it is gone."""
    me = str(os.getpid())
    dice = random.Random(f"{briefing.seed} {me}")  # noqa: S311  # a seed that repeats a run, no secret
    with History(Path(briefing.history)) as history:
        hosted = [agent.hosted for agent in agents]
        unrest = Unrest(Path(briefing.orders), history, dice)
        unrest.install(capability for _, offered in hosted for capability in offered)
        built_in.noted_in.append(history)
        peer = Peer(*hosted, settings=Settings())

        async def tell_when_ready() -> None:
            await eventually(lambda: peer.is_ready()[0], within_s=READY_WITHIN_S)
            history.add(Entry(What.READY, peer=me))

        async with serving(unrest.obey(), tell_when_ready()):
            _stop_at_end_of_input(peer)
            await peer.run()


def _stop_at_end_of_input(peer: Peer) -> None:
    loop = asyncio.get_running_loop()

    def read_to_end() -> None:
        # Not `sys.stdin`, whose lock the interpreter wants when it ends.
        while os.read(sys.stdin.fileno(), 4_096):
            pass
        loop.call_soon_threadsafe(peer.stop)

    # A thread of its own, which may stay in its read when the process ends.
    threading.Thread(target=read_to_end, name="mesh-stdin", daemon=True).start()
