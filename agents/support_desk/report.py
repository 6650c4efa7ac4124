"""What the desk's programs print on standard output."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from agents.support_desk.figures import Figures, figures
from agents.support_desk.payloads import HUMAN, SPECIALIST, TRIAGE
from agents.support_desk.sending import Journey, settled
from contracts.workflow import Verdict

WIDTH_MIN: Final = 80
WIDTH_MAX: Final = 120
SHOWN_OF_RUNG: Final = 2
TEXT_LENGTH_MAX: Final = 44

_RUNG: Final = {
    TRIAGE: "a linear model, within milliseconds",
    SPECIALIST: "three networks, where triage is unsure",
    HUMAN: "people, where the specialist is unsure too",
}
_NEXT: Final = """\
Next, try:
  mesh up agents.support_desk.desk mesh.human                  a desk that stays
  mesh submit support '{"text": "Where is my parcel?"}'        a ticket, from another terminal in the same folder
  mesh inbox ls                                                what waits for you there
  make demo-support DATA=tickets.csv                           the same with your tickets: columns text, category"""


@dataclass(frozen=True, slots=True)
class Played:
    """What happened in the demo."""

    journeys: Sequence[Journey]
    answered: Mapping[Verdict, Journey]
    killed: int | None
    """The process that was killed."""

    @property
    def waiting(self) -> int:
        return sum(journey.waits_for_person for journey in self.journeys)

    @property
    def failed(self) -> int:
        return sum(journey.failure is not None for journey in self.journeys)


def print_json(document: Any) -> None:
    """One JSON object."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    sys.stdout.flush()


def document(played: Played, *, elapsed_s: float) -> dict[str, Any]:
    """What happened in the demo, for a program."""
    return {
        **msgspec.to_builtins(_figures(played)),
        "waiting": played.waiting,
        "failed": played.failed,
        "answered": {verdict: journey.key for verdict, journey in played.answered.items()},
        "killed": int(played.killed is not None),
        "elapsed_s": round(elapsed_s, 1),
    }


def show(played: Played, *, elapsed_s: float) -> None:
    """What happened in the demo, and what to type next."""
    console = _console()
    console.print()
    show_figures(_figures(played), title=f"{len(played.journeys):,} tickets")
    console.print()
    console.print(_sample(played), width=_width(console))
    console.print()
    lost = f", {played.failed} failed" if played.failed else ", none was lost"
    console.print(
        f"One peer was killed on the way{lost}. {played.waiting} tickets wait for people still."
        f" All of it took {elapsed_s:.0f} s.\n\n{_NEXT}",
        soft_wrap=True,
    )


def show_figures(found: Figures, *, title: str) -> None:
    """A table: what each rung settled, and how well."""
    table = _table(title)
    table.add_column("rung", no_wrap=True)
    for name in ("tickets", "share", "right"):
        table.add_column(name, justify="right")
    table.add_column("")
    for rung, of in found.by_rung.items():
        table.add_row(rung, f"{of.tickets:,}", percent(of.share), percent(of.accuracy), _RUNG[rung])
    resolved = sum(of.tickets for rung, of in found.by_rung.items() if rung != HUMAN)
    error = found.calibration_error
    told = "" if error is None else f"without people; confidence is off by {percent(error)} on average"
    table.add_row("resolved", f"{resolved:,}", percent(found.resolved_share), percent(found.accuracy), told)
    console = _console()
    console.print(table, width=_width(console))


def percent(share: float | None) -> str:
    """A share for people; empty where there is none."""
    return "" if share is None else f"{share:.1%}"


def _figures(played: Played) -> Figures:
    return figures([settled(journey) for journey in played.journeys])


def _sample(played: Played) -> Table:
    table = _table("Some journeys")
    table.add_column("ticket", no_wrap=True)
    table.add_column("settled by", no_wrap=True)
    table.add_column("about", no_wrap=True)
    table.add_column("goes to", no_wrap=True)
    verdicts = {journey.key: verdict for verdict, journey in played.answered.items()}
    for journey in _shown(played):
        text, resolution = _short(journey.example.text), journey.resolution
        if resolution is None:
            table.add_row(text, "nobody yet", "", "mesh inbox ls")
            continue
        by = f"a person: {verdicts[journey.key]}" if journey.key in verdicts else resolution.rung
        if resolution.rung != HUMAN:
            by += f", {resolution.confidence:.2f} sure"
        table.add_row(text, by, resolution.label or "", resolution.queue)
    return table


def _shown(played: Played) -> list[Journey]:
    by_machine = [
        journey
        for rung in (TRIAGE, SPECIALIST)
        for journey in [one for one in played.journeys if settled(one).rung == rung][:SHOWN_OF_RUNG]
    ]
    return [*by_machine, *played.answered.values(), *[one for one in played.journeys if one.waits_for_person][:1]]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_LENGTH_MAX else f"{line[: TEXT_LENGTH_MAX - 1]}…"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")


def _console() -> Console:
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH_MAX)


def _width(console: Console) -> int:
    return max(WIDTH_MIN, min(console.width, WIDTH_MAX))
