"""`mesh report`: what was done in a time, how long it took, what it met on the way, and what it cost."""

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.cli import console
from mesh.cli.console import AsJson, clock, length, one_line
from mesh.cli.events import OfCapability, moment, read_told
from mesh.cli.figures import By, Report, Row, Slow, Tally, quantile

if TYPE_CHECKING:
    from mesh.bus.connection import Bus

SINCE: Final = "1h"
KINDS: Final = ("ended", "retried", "taken-over", "dead-lettered")


def report(
    since: Annotated[
        str, typer.Option("--since", help="From when on: a length of time, as 15m, 24h or 7d, or an ISO time.")
    ] = SINCE,
    by: Annotated[By, typer.Option(help="What the tasks of a row have in common.")] = By.CAPABILITY,
    capability: OfCapability = None,
    as_json: AsJson = False,
) -> None:
    """Print what was done: tasks, how long they waited and ran, retries, and what they cost.

    It is made from the events that are kept; peers with MESH_EVENTS=notable or off tell no ends of tasks.
    """
    from contracts.subjects import check_capability

    if capability is not None:
        check_capability(capability)
    now = time.time()
    from_at = moment(since, now)
    tally = Tally(by)

    async def main() -> float:
        async with console.connected() as bus:
            filters = [one for kind in KINDS for one in bus.subjects.events_of(kind, capability or "*")]
            async for event in read_told(bus, filters, since=from_at):
                tally.add(event)
            return max(from_at, await _kept_since(bus))

    kept_since = console.run(main())
    found = tally.report(since=kept_since, until=now)
    if as_json:
        console.print_json(_document(found))
    elif not found.rows:
        console.note(f"no task ended since {clock(from_at)}, or its event is not kept: see `mesh events`")
    else:
        _print(found)


async def _kept_since(bus: "Bus") -> float:
    """The time of the oldest event that is kept; before it nothing can be told."""
    from mesh.bus.records import unix

    info = await bus.api(f"STREAM.INFO.{bus.subjects.event_stream}")
    return unix(info["state"]["first_ts"]) if info["state"]["messages"] else 0.0


def _print(found: Report) -> None:
    from rich.table import Table

    # A column that says nothing is left out.
    columns = [(heading, cells) for heading, cells in _columns(found) if any(cells)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == str(found.by) else "right", no_wrap=True)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells)
    console.out().print(table)
    tasks = sum(row.tasks for row in found.rows)
    print(f"\n{tasks:,} tasks ended since {clock(found.since)} ({length(found.until - found.since)})")
    if found.usd:
        a_day = f"; a day like this costs ${found.usd_a_day:,.4g}" if found.usd_a_day else ""
        print(f"${found.usd:,.4g} spent{a_day}")
    if found.slowest:
        print("\nslowest, from stored to answered:")
    for slow in found.slowest:
        print(
            f"  {length(slow.queue_s + slow.run_s):>7}  {slow.capability}/{one_line(slow.id, 80)}"
            f"  queued {length(slow.queue_s)}, ran {length(slow.run_s)} on {slow.peer}"
        )


def _columns(found: Report) -> list[tuple[str, list[str]]]:
    rows = found.rows
    return [
        (str(found.by), [one_line(row.name, 48) for row in rows]),
        ("tasks", [f"{row.tasks:,}" for row in rows]),
        *((name, [_count(getattr(row, field)) for row in rows]) for name, field in _COUNTS),
        *(
            (f"{what} p{share}", [length(quantile(getattr(row, field), share / 100)) for row in rows])
            for what, field in (("queue", "queue_s"), ("run", "run_s"))
            for share in (50, 95)
        ),
        ("confidence", [f"{row.confidence:.2f}" if row.confidence is not None else "" for row in rows]),
        ("tokens", [_count(row.tokens_in + row.tokens_out) for row in rows]),
        ("cost", [f"${row.usd:,.4g}" if row.usd else "" for row in rows]),
    ]


_COUNTS: Final = (
    ("failed", "failed"),
    ("expired", "expired"),
    ("cancelled", "cancelled"),
    ("retried", "retried"),
    ("taken over", "taken_over"),
    ("dead", "dead_lettered"),
)


def _count(count: int) -> str:
    return f"{count:,}" if count else ""


def _document(found: Report) -> dict[str, Any]:
    return {
        "by": str(found.by),
        "since": found.since,
        "until": found.until,
        "usd": found.usd,
        "usd_a_day": found.usd_a_day,
        "rows": [_row(row) for row in found.rows],
        "slowest": [_slow(slow) for slow in found.slowest],
    }


def _row(row: Row) -> dict[str, Any]:
    plain = {field.name: getattr(row, field.name) for field in fields(row)}
    for name in ("queue_s", "run_s"):
        values = plain.pop(name)
        plain |= {f"{name}_p{share}": quantile(values, share / 100) for share in (50, 95, 99)}
    del plain["confidence_sum"], plain["confidences"]
    return {**plain, "confidence": row.confidence}


def _slow(slow: Slow) -> dict[str, Any]:
    return {field.name: getattr(slow, field.name) for field in fields(slow)}
