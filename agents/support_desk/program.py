"""What the desk's programs share: training before, a desk of their own, a clean end, and errors in plain words."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agents.support_desk.crew import Crew, crew_running
from agents.support_desk.ladder import Ladder, TrainingError
from agents.support_desk.settings import own_environment
from agents.support_desk.tickets import Ticket, TicketFileError
from mesh import Mesh, MeshError

FAILED: Final = 1
WRONG_INPUT: Final = 2
TERMINATED: Final = 143

R = TypeVar("R")

_notes = Console(stderr=True, highlight=False, markup=False)


def note(text: str) -> None:
    """A remark on standard error, where everything goes that is not the report."""
    _notes.print(text, soft_wrap=not _notes.is_terminal)


def trained(tickets: Sequence[Ticket]) -> tuple[Ladder, float]:
    """A ladder trained on these tickets, and how many seconds that took."""
    note(f"Training on {len(tickets):,} tickets.")
    began = time.monotonic()
    ladder = Ladder.train(tickets)
    took_s = time.monotonic() - began
    note(
        f"Trained in {took_s:.1f} s. On tickets it had not seen it resolved {ladder.forecast.resolved_share:.1%},"
        f" {ladder.forecast.accuracy:.1%} of that right."
    )
    return ladder, took_s


def with_desk(
    ladder: Ladder, act: Callable[[Mesh, Crew], Coroutine[Any, Any, R]], *, replicas: int, inbox_max: int
) -> R:
    """What `act` comes to with a desk of these models, which runs meanwhile and leaves nothing behind."""

    async def main() -> R:
        end_on_sigterm()
        async with crew_running(Path(folder), replicas=replicas) as crew, Mesh.connect(crew.url, name="desk") as mesh:
            note(f"{replicas} peers are ready on {crew.url}.")
            return await act(mesh, crew)

    with TemporaryDirectory(prefix="support-desk-") as folder:
        models = Path(folder, "desk.models")
        ladder.save(models)
        own_environment(models, MESH_INBOX_MAX=str(inbox_max))
        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            raise typer.Exit(TERMINATED) from None


def run(command: Callable[..., None]) -> None:
    """Run a program's only command; errors are one line on standard error, and an exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    # Training ends its processes when it is left by an exception, and not when a signal ends this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    complaints: list[Exception] = []
    try:
        app()
    except* (MeshError, TicketFileError, TrainingError, OSError) as group:
        complaints = _leaves(group)
    if complaints:
        note(str(complaints[0]))
        raise SystemExit(FAILED if isinstance(complaints[0], MeshError) else WRONG_INPUT)


def peers_for_this_machine() -> int:
    """One peer a core, but at least two and at most four."""
    return min(4, max(2, os.cpu_count() or 2))


def bar(total: int) -> tuple[Progress, Callable[[], None]]:
    """A bar on standard error, where that is a terminal, and what advances it."""
    columns = (TextColumn("tickets"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=_notes, transient=True, disable=not _notes.is_terminal)
    task = progress.add_task("tickets", total=total)
    return progress, lambda: progress.advance(task)


def end_on_sigterm() -> None:
    """Have SIGTERM and a closed terminal unwind this coroutine as Ctrl-C does, so that nothing is left behind."""
    running = asyncio.current_task()
    assert running is not None
    for signum in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, running.cancel)


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    return [leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, ExceptionGroup) else [one])]
