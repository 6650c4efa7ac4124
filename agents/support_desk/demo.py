"""Real tickets through a desk of your own machine: a peer is killed on the way, and people answer what is left.

    python -m agents.support_desk.demo [--data tickets.csv]

A part of the tickets is learned from, the others are sent through `mesh up agents.support_desk.desk mesh.human`, with
a server, peers and a folder that are gone afterwards.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from agents.support_desk import report
from agents.support_desk.crew import Crew
from agents.support_desk.models import SHIPPED_TICKETS
from agents.support_desk.person import answer_some
from agents.support_desk.program import bar, note, run, trained, with_desk
from agents.support_desk.sending import send
from agents.support_desk.splitting import split
from agents.support_desk.tickets import Ticket, TicketFileError, read_tickets
from mesh import Mesh

REPLICAS: Final = 2
TRAINING_SHARE: Final = 2 / 3
SEED: Final = 1
KILL_AFTER: Final = 1 / 4
"""The share of tickets that have left when a peer is killed."""


def demo(
    data: Annotated[
        Path | None,
        typer.Option(metavar="CSV", show_default=False, help="Your tickets: columns text and category."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many tickets are sent at most.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Send tickets up a ladder of agents, kill one of their peers, and answer some of what is left to people."""
    began = time.monotonic()
    path = data or SHIPPED_TICKETS
    to_learn, others = split(read_tickets(path, labels_required=True), training_share=TRAINING_SHARE, seed=SEED)
    to_send = others[:limit]
    if not to_send:
        raise TicketFileError(path, "every ticket is needed for training; nothing is left to send")
    ladder, _ = trained(to_learn)
    played = with_desk(
        ladder,
        lambda mesh, crew: _play(mesh, crew, to_send),
        replicas=REPLICAS,
        inbox_max=max(1_000, len(to_send)),
    )
    elapsed_s = time.monotonic() - began
    if as_json:
        report.print_json(report.document(played, elapsed_s=elapsed_s))
    else:
        report.show(played, elapsed_s=elapsed_s)


async def _play(mesh: Mesh, crew: Crew, to_send: Sequence[Ticket]) -> report.Played:
    progress, advance = bar(len(to_send))
    killing = _Killing(await crew.peer_pids(), after=round(KILL_AFTER * len(to_send)))

    def on_progress() -> None:
        advance()
        killing.count()

    note(f"{len(to_send)} tickets are sent.")
    with progress:
        journeys = await send(mesh, to_send, on_progress=on_progress)
    answered = await answer_some(mesh, journeys)
    return report.Played(journeys, answered, killed=killing.killed)


@dataclass(slots=True)
class _Killing:
    """Kills one peer once enough tickets have left."""

    pids: Sequence[int]
    after: int
    killed: int | None = None
    _counted: int = 0

    def count(self) -> None:
        self._counted += 1
        if self._counted >= self.after and self.killed is None and self.pids:
            self.killed = self.pids[0]
            os.kill(self.killed, signal.SIGKILL)
            note(f"SIGKILL to a peer, process {self.killed}, after {self._counted} tickets.")


if __name__ == "__main__":
    run(demo)
