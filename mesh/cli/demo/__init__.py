"""`mesh demo`: a real job in front of the reader, with one peer killed on the way."""

import asyncio
import importlib.util
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

AGENT: Final = "agents.code_review"
TERMINATED: Final = 143


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(exists=True, show_default=False, help="A folder or file of Python; else the standard library."),
    ] = None,
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(help="Chooses the peer that is killed, and when.")] = 1,
    peers: Annotated[int, typer.Option(min=2, max=16, help="How many peers, each a process.")] = 4,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the mesh running afterwards, until Ctrl-C.")] = False,
) -> None:
    """Review real Python source on several peers, and kill one of them in the middle of its work.

    It uses a server and peers of its own, with shipped defaults, and leaves nothing behind.

    Every file is submitted twice under the same key, by two submitters.

    The exit code is 1 if a task was lost or answered twice.
    """
    from mesh.errors import SetupError

    if importlib.util.find_spec("ruff") is None:
        raise SetupError("the demo's agent needs ruff: pip install 'starling-mesh[agents,local]'")
    try:
        is_sound = console.run(_perform(path, as_json=as_json, seed=seed, count=peers, keep=keep))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    raise typer.Exit(console.OK if is_sound else console.FAILED)


async def _perform(path: Path | None, *, as_json: bool, seed: int, count: int, keep: bool) -> bool:
    """The whole demo; whether the promises held."""
    from rich.console import Console

    from mesh.bus.connection import Bus
    from mesh.cli.demo import journey, report
    from mesh.cli.demo.corpus import read_corpus
    from mesh.cli.demo.peers import peers_running, until_ready
    from mesh.cli.demo.summary import summarise
    from mesh.local.server import local_server

    began_at = time.time()
    end_on_sigterm()
    telling = report.Telling(Console(stderr=True), is_quiet=as_json)
    corpus = read_corpus(path, payload_bytes_max=journey.default_settings("").payload_bytes_max)
    report.tell_corpus(telling, corpus)
    with tempfile.TemporaryDirectory(prefix="mesh-demo-") as scratch, local_server(Path(scratch, "store")) as server:
        async with (
            peers_running(AGENT, count=count, url=server.url, folder=Path(scratch)) as processes,
            Bus.connect(journey.default_settings(server.url), "observer") as bus,
        ):
            telling.say(f"A NATS server runs on {server.url}; {count} peers start, each a process.")
            described = await until_ready(bus, processes)
            telling.say(f"All {count} are ready after {time.time() - began_at:.1f} s.")
            with telling.counting(len(corpus.wanted)) as counting:
                stage = journey.Stage(
                    url=server.url,
                    bus=bus,
                    peers=processes,
                    described=described,
                    corpus=corpus,
                    seed=seed,
                    began_at=began_at,
                    tell=telling.say,
                    on_result=counting.advance,
                )
                history = await journey.travel(stage)
            summary = summarise(history)
            names = {peer: str(stage.process_of(peer)) for peer in stage.peers_in_order()}
            report.tell_takeover(telling, history, corpus, names)
            if as_json:
                console.print_json(summary)
            else:
                report.show(history, summary, corpus, names, url=server.url if keep else None)
            if keep:
                await _until_told_to_end()
    return summary.is_sound


def end_on_sigterm() -> None:
    """Have SIGTERM and a closed terminal unwind this coroutine as Ctrl-C does, so that nothing is left behind."""
    running = asyncio.current_task()
    assert running is not None
    for signum in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, running.cancel)


async def _until_told_to_end() -> None:
    """Return at Ctrl-C or SIGTERM, which from here on are the way out and not an interruption."""
    told = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, told.set)
    await told.wait()
