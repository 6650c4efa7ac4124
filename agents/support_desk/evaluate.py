"""How well a desk does on your tickets, measured with the whole mesh between question and answer.

    python -m agents.support_desk.evaluate --train old.csv --data new.csv

Trains on the one file and sends every ticket of the other through a desk of its own: real peers, a real server.
Nobody plays the person: a ticket that waits for one is left to people, and counts so.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from agents.support_desk.crew import Crew
from agents.support_desk.figures import figures
from agents.support_desk.program import FAILED, bar, note, peers_for_this_machine, run, trained, with_desk
from agents.support_desk.report import print_json, show_figures
from agents.support_desk.sending import Journey, send, settled
from agents.support_desk.tickets import Ticket, read_tickets
from mesh import Mesh

NAMED_MAX: Final = 5
INBOX_SLACK: Final = 1_000


def evaluate(
    train: Annotated[Path, typer.Option(metavar="CSV", help="Tickets to learn from: columns text and category.")],
    data: Annotated[Path, typer.Option(metavar="CSV", help="Tickets to answer, labelled too.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Measure how many tickets a desk resolves without people, and how many of those rightly."""
    to_learn = read_tickets(train, labels_required=True)
    examples = read_tickets(data, labels_required=True)
    ladder, trained_s = trained(to_learn)
    unknown = _tell_unknown(examples, ladder.labels)

    async def through(mesh: Mesh, _: Crew) -> list[Journey]:
        progress, advance = bar(len(examples))
        with progress:
            return await send(mesh, examples, on_progress=advance)

    began = time.monotonic()
    journeys = with_desk(ladder, through, replicas=peers_for_this_machine(), inbox_max=len(examples) + INBOX_SLACK)
    elapsed_s = time.monotonic() - began
    failures = [journey for journey in journeys if journey.failure is not None]
    for journey in failures[:NAMED_MAX]:
        note(f"{journey.key} failed: {journey.failure}")
    found = figures([settled(journey) for journey in journeys])
    if as_json:
        print_json(
            {
                **msgspec.to_builtins(found),
                "failed": len(failures),
                "unknown_labels": unknown,
                "forecast": ladder.forecast,
                "trained_s": round(trained_s, 1),
                "elapsed_s": round(elapsed_s, 1),
            }
        )
    else:
        show_figures(found, title=f"{data}, by a desk that learned from {train}")
        note(f"{len(examples):,} tickets in {elapsed_s:.0f} s, start and end of the mesh included.")
    raise typer.Exit(FAILED if failures else 0)


def _tell_unknown(examples: Sequence[Ticket], labels: Sequence[str]) -> int:
    """How many tickets have a label that was not learned; says so, where there are any."""
    unknown = [ticket.label for ticket in examples if ticket.label not in labels]
    if unknown:
        some = ", ".join(sorted({str(label) for label in unknown})[:NAMED_MAX])
        note(f"{len(unknown)} tickets have labels that were not trained ({some}): if resolved, they are wrong.")
    return len(unknown)


if __name__ == "__main__":
    run(evaluate)
