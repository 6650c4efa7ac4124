"""A game day told to a reader: what happened when, how long recovery took, and the verdict."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from mesh.cli import console
from mesh.testing.chaos.catalogue import Kind
from mesh.testing.chaos.game_day import Report


def show(report: Report) -> None:
    """The report on standard output."""
    out = console.out()
    out.print(_timeline(report))
    print()
    out.print(_recovery(report))
    print()
    print(f"seed {report.seed}: {report.tasks:,} tasks confirmed, {report.answered:,} answered,", end=" ")
    print(f"{report.lost} lost, {report.duplicated} duplicated, {sum(report.faults.values())} faults")
    for name, found in report.violations.items():
        print(f"{name}:")
        for one in found:
            print(f"  {console.one_line(one)}")
    out.print(Text(report.verdict, style="bold green" if report.is_sound else "bold red"))


def show_faults(kinds: Iterable[Kind]) -> None:
    """The faults as a table."""
    table = Table(box=None, pad_edge=False)
    for name in ("fault", "safe", "what it does", "needs"):
        table.add_column(name, overflow="fold", no_wrap=name in ("fault", "safe"))
    for kind in kinds:
        table.add_row(kind.name, "yes" if kind.is_safe else "", kind.told, ", ".join(sorted(kind.needs)))
    console.out().print(table)


def _timeline(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("at", "fault", "target", "lasted", "throughput back", "in flight answered"):
        table.add_column(name, justify="left" if name in ("fault", "target") else "right")
    for event in report.timeline:
        table.add_row(
            f"{event.at_s:.1f} s",
            event.fault,
            console.one_line(event.target, 40),
            _length(event.healed_after_s, "goes on"),
            _length(event.throughput_s, "-"),
            f"{_length(event.in_flight_s, '-')} ({event.in_flight})",
        )
    return table


def _recovery(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("recovery from")
    for name in ("strikes", "throughput p50", "max", "in flight p50", "max", "never"):
        table.add_column(name, justify="right")
    for kind, recovered in report.recovery_s.items():
        table.add_row(
            kind,
            str(recovered.strikes),
            *(
                _length(seconds, "-")
                for seconds in (
                    recovered.throughput_p50_s,
                    recovered.throughput_max_s,
                    recovered.in_flight_p50_s,
                    recovered.in_flight_max_s,
                )
            ),
            str(recovered.unrecovered or ""),
        )
    return table


def _length(seconds: float | None, otherwise: str) -> str:
    if seconds is None:
        return otherwise
    return "0 s" if seconds == 0 else console.length(seconds)
