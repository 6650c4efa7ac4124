"""`mesh up`: a whole mesh on this machine, or its peers alone: processes, restarts, logs, and a clean end.

Order of leaving: peers drain over a live connection, then the server stops, then its announcement goes. A peer
whose `mesh up` is killed sees its standard input end, and drains too.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from mesh.cli import console
from mesh.cli.serve import Targets

if TYPE_CHECKING:
    from contracts.card import CapabilityCard, Described
    from mesh.bus.connection import Bus
    from mesh.settings import Settings

FIRST_RESTART_S: Final = 0.25
RESTART_S_MAX: Final = 15.0
STEADY_AFTER_S: Final = 30.0
STOP_SLACK_S: Final = 5.0
LOOK_EVERY_S: Final = 0.2
DEFAULT_STORE: Final = Path(".mesh/store")
COLOURS: Final = (36, 33, 35, 32, 34, 31)


def up(
    targets: Targets,
    replicas: Annotated[int, typer.Option(min=1, max=256, help="How many peers, each a process.")] = 1,
    store: Annotated[Path, typer.Option(help="Where the server keeps its streams; kept across runs.")] = DEFAULT_STORE,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The server's port; 0 takes a free one.")] = 0,
) -> None:
    """Start a mesh here: an embedded nats-server and peers of the given agents, until Ctrl-C.

    With MESH_NATS_URL set it starts the peers alone. A peer that crashes is started again; one whose agents
    cannot be loaded ends the command.
    """
    settings = console.settings()
    with ExitStack() as stack:
        where = "the server of MESH_NATS_URL"
        if not settings.nats_url:
            url = stack.enter_context(_server(settings, store, port))
            where = f"{url}, store {store}"
            settings = settings.model_copy(update={"nats_url": url})
        exit_with = console.run(Crew(settings, targets, replicas, where).run())
    raise typer.Exit(exit_with)


def restart_after_s(crashes_in_a_row: int) -> float:
    """How long a crashed peer stays away: doubling with each crash that follows soon on a start."""
    return min(RESTART_S_MAX, FIRST_RESTART_S * 2.0 ** max(0, crashes_in_a_row - 1))


class Crew:
    """The peers of one `mesh up`, each kept running until told to stop."""

    def __init__(self, settings: "Settings", targets: list[str], replicas: int, where: str) -> None:
        self._settings = settings
        self._targets = targets
        self._replicas = replicas
        self._where = where
        self._stop = asyncio.Event()
        self._processes: dict[int, Process] = {}
        self._signals = 0
        self._exit_with = console.OK

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM, or until the agents turn out not to load. The exit code."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._told_to_stop)
        async with asyncio.TaskGroup() as fibers:
            for number in range(1, self._replicas + 1):
                fibers.create_task(self._keep(number))
            greeting = fibers.create_task(self._greet())
            await self._stop.wait()
            greeting.cancel()
            await self._end()
        return self._exit_with

    def _told_to_stop(self) -> None:
        self._signals += 1
        if self._signals == 1:
            print("ending: peers finish what they run; Ctrl-C again ends them at once", flush=True)
        elif self._signals > 1:
            for process in self._processes.values():
                _signal(process, signal.SIGKILL)
        self._stop.set()

    async def _end(self) -> None:
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace_s + STOP_SLACK_S):
                for process in list(self._processes.values()):
                    await process.wait()
        for process in self._processes.values():
            _signal(process, signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        name = f"peer-{number}"
        crashes = 0
        while not self._stop.is_set():
            began = time.monotonic()
            code = await self._one_life(number, name)
            if self._stop.is_set():
                return
            if code == console.USAGE:
                self._exit_with = code
                self._stop.set()
                return
            crashes = 1 if time.monotonic() - began > STEADY_AFTER_S else crashes + 1
            after_s = restart_after_s(crashes)
            print(f"{name} ended ({_ending(code)}); it starts again in {console.length(after_s)}", flush=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(after_s):
                    await self._stop.wait()

    async def _one_life(self, number: int, name: str) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh", "run", "--until-stdin-ends", *self._targets),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._environment(name),
            # A session of its own: Ctrl-C reaches this process alone, which ends the peers in order.
            start_new_session=True,
        )
        self._processes[number] = process
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            # Started while the crew was told to stop: it was not among those that were told.
            if self._stop.is_set():
                _signal(process, signal.SIGTERM)
            async with asyncio.TaskGroup() as relays:
                relays.create_task(_relay(process.stdout, _prefixed(number, name, sys.stdout.isatty()), sys.stdout))
                # A JSON line names its peer itself.
                is_json = self._settings.log_format == "json"
                told = _bare if is_json else _prefixed(number, name, sys.stderr.isatty())
                relays.create_task(_relay(process.stderr, told, sys.stderr))
            return await process.wait()
        finally:
            _signal(process, signal.SIGKILL)
            del self._processes[number]

    def _environment(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            "MESH_NATS_URL": self._settings.nats_url or "",
            "MESH_PEER_NAME": self._settings.peer_name or name,
        }

    async def _greet(self) -> None:
        """Say what can be asked for once every peer is ready."""
        from mesh.bus.connection import Bus
        from mesh.errors import BusUnavailable

        while True:
            try:
                async with Bus.connect(self._settings, "mesh-up") as bus:
                    peers = await self._ready(bus)
                    break
            except BusUnavailable as error:
                console.note(f"{error}; trying on")
        print(greeting(peers, self._where), flush=True)

    async def _ready(self, bus: "Bus") -> "list[Described]":
        from contracts.card import PeerState
        from mesh.cli.fleet import describe

        while True:
            own = {process.pid for process in self._processes.values()}
            peers = await describe(bus, within_s=LOOK_EVERY_S)
            ours = [peer for peer in peers if peer.beat.pid in own and peer.beat.state is PeerState.READY]
            if len(ours) >= self._replicas:
                return ours
            await asyncio.sleep(LOOK_EVERY_S)


def greeting(peers: "list[Described]", where: str) -> str:
    """What runs, what it can be asked for, and what to type next."""
    offered = {capability.name: capability for peer in peers for card in peer.cards for capability in card.capabilities}
    width = max(map(len, offered))
    lines = [f"{len(peers)} {'peer' if len(peers) == 1 else 'peers'} on {where}", "", "It can be asked for:"]
    lines += [f"  {name:<{width}}  {capability.description}".rstrip() for name, capability in offered.items()]
    lines += ["", "Ask from another terminal in this folder:"]
    lines += [f"  {submission(capability)}" for capability in list(offered.values())[:3]]
    return "\n".join(["", *lines, "  mesh agents", "", "Ctrl-C ends it.", ""])


def submission(capability: "CapabilityCard") -> str:
    """The command that submits an example payload to a capability."""
    from mesh.cli.example import example

    payload = example(capability.input_schema)
    if payload is None:
        return f"mesh submit {capability.name}"
    return f"mesh submit {capability.name} {shlex.quote(msgspec.json.encode(payload).decode())}"


@contextmanager
def _server(settings: "Settings", store: Path, port: int) -> Iterator[str]:
    from mesh.local.discovery import announce, find_announced
    from mesh.local.server import local_server

    here = Path.cwd()
    if (pid := find_announced(here)) is not None:
        raise console.Failed(f"a mesh runs in this folder already (process {pid}): end it, or go to another folder")
    with local_server(store, port=port or -1) as server:
        announcement = announce(here, url=server.url, prefix=settings.prefix, sync_interval=server.sync_interval)
        try:
            yield server.url
        finally:
            announcement.unlink(missing_ok=True)


async def _relay(source: asyncio.StreamReader, prefixed: Callable[[str], str], target: "object") -> None:
    rest = b""
    while chunk := await source.read(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            print(prefixed(line.decode("utf-8", "replace")), file=target, flush=True)  # type: ignore[call-overload]  # a text stream
    if rest:
        print(prefixed(rest.decode("utf-8", "replace")), file=target, flush=True)  # type: ignore[call-overload]  # a text stream


def _prefixed(number: int, name: str, is_coloured: bool) -> Callable[[str], str]:
    head = f"{name} | "
    if is_coloured:
        head = f"\x1b[{COLOURS[(number - 1) % len(COLOURS)]}m{head}\x1b[0m"
    return lambda line: head + line


def _bare(line: str) -> str:
    return line


def _signal(process: Process, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.send_signal(signum)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
