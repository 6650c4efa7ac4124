"""`mesh schedule`: recurring tasks."""

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from mesh.cli import console
from mesh.cli.console import AsJson, clock, short_json

if TYPE_CHECKING:
    from mesh.bus.connection import Bus
    from mesh.bus.timers import Schedule

R = TypeVar("R")

ANSWER_WITHIN_S = 30.0
CRON_FIELDS = 6

schedule = typer.Typer(
    name="schedule",
    help="Recurring tasks: set, list and take them away.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name; its tasks are NAME-20260102T090000Z.")]


@schedule.command("set")
def set_(
    name: Name,
    when: Annotated[
        str,
        typer.Argument(
            metavar="WHEN", help="Cron, seconds first: '0 30 9 * * mon-fri'; or @every 10m, @hourly, @daily, @weekly."
        ),
    ],
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", help="What to ask for each time.")],
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="JSON, or `-` to read it from standard input.")
    ] = "null",
    zone: Annotated[str, typer.Option(help="IANA time zone, such as Europe/Berlin; UTC if not given.")] = "",
    as_json: AsJson = False,
) -> None:
    """Have a task submitted again and again. Safe to repeat; a name stands for one schedule."""
    from contracts.subjects import check_capability
    from contracts.workflow import Recurring

    cron = six_fields(when)
    recurring = Recurring(
        capability=check_capability(capability),
        payload=console.json_argument(payload, "the payload"),
        schedule=cron,
        time_zone=zone,
        by=console.whoami(),
        at=time.time(),
    )

    async def main() -> tuple[bool, bool]:
        from mesh.whereabouts import is_served

        async with console.connected() as bus:
            await console.check_made(bus)
            return await _set(bus, name, recurring), await is_served(bus, capability)

    is_new, is_served = console.run(main())
    if as_json:
        console.print_json({"name": name, "is_new": is_new, **msgspec.to_builtins(recurring)})
        return
    if cron != when.strip():
        console.note(f"five fields begin with minutes: taken as {cron!r}, at second 0")
    print(f"{name} asks for {capability} {_when(recurring)}" + ("" if is_new else "; it was set before"))
    if not is_served:
        console.note(f"no peer serves {capability} now: its tasks wait")


@schedule.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List recurring tasks, by name."""

    async def main() -> "list[Schedule]":
        from mesh.bus.timers import schedules

        async with console.connected() as bus:
            await console.check_made(bus)
            return sorted(await schedules(bus), key=lambda one: one.name)

    found = console.run(main())
    if as_json:
        console.print_json({"schedules": [_document(one) for one in found]})
    elif not found:
        console.note("no recurring tasks; `mesh schedule set` makes one")
    else:
        _print(found)


@schedule.command("show")
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one recurring task, with its payload."""

    async def main() -> "Schedule | None":
        from mesh.bus.timers import read_schedule

        async with console.connected() as bus:
            await console.check_made(bus)
            return await read_schedule(bus, name)

    found = console.run(_in_time(main()))
    if found is None:
        raise console.Failed(f"no schedule {name!r}; `mesh schedule ls` lists them")
    if as_json:
        console.print_json(_document(found))
        return
    recurring = found.recurring
    print(f"{name} asks for {recurring.capability} {_when(recurring)}")
    print(f"  set         {clock(recurring.at)}{f' by {recurring.by}' if recurring.by else ''}")
    print("  payload")
    console.print_value(recurring.payload)


@schedule.command("rm")
def rm(name: Name, as_json: AsJson = False) -> None:
    """Take a recurring task away; what it submitted goes on."""

    async def main() -> bool:
        from mesh.bus.timers import drop_schedule

        async with console.connected() as bus:
            await console.check_made(bus)
            return await drop_schedule(bus, name)

    is_gone = console.run(_in_time(main()))
    if not is_gone:
        raise console.Failed(f"no schedule {name!r}; `mesh schedule ls` lists them")
    if as_json:
        console.print_json({"name": name, "is_removed": True})
    else:
        print(f"{name} is removed")


def six_fields(when: str) -> str:
    """A schedule as the server takes it: cron's usual five fields get a second of 0."""
    fields = when.split()
    is_cron = bool(fields) and not when.lstrip().startswith("@")
    return f"0 {' '.join(fields)}" if is_cron and len(fields) == CRON_FIELDS - 1 else when.strip()


async def _set(bus: "Bus", name: str, recurring: Any) -> bool:
    """Set it. False: the same stands already.

    Raises:
        IdempotencyConflict: another one has the name.
    """
    from mesh.bus.timers import read_schedule, set_schedule
    from mesh.errors import IdempotencyConflict

    if await _in_time(set_schedule(bus, name, recurring)):
        return True
    standing = await _in_time(read_schedule(bus, name))
    if standing is not None and _same(standing.recurring, recurring):
        return False
    told = "" if standing is None else f" asks for {standing.recurring.capability} {_when(standing.recurring)}"
    raise IdempotencyConflict(f"{name}{told or ' is taken'}; to change it, `mesh schedule rm {name}` first")


async def _in_time(asking: Coroutine[Any, Any, R]) -> R:
    from mesh.errors import DeadlineExceeded

    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await asking
    except TimeoutError:
        raise DeadlineExceeded(f"no answer of the server within {ANSWER_WITHIN_S:g} s; repeat it as it is") from None


def _same(one: Any, other: Any) -> bool:
    return all(
        getattr(one, field) == getattr(other, field) for field in ("capability", "payload", "schedule", "time_zone")
    )


def _when(recurring: Any) -> str:
    if recurring.schedule.startswith("@every"):
        return str(recurring.schedule).removeprefix("@")
    return f"at {recurring.schedule!r}, {recurring.time_zone or 'UTC'}"


def _document(found: "Schedule") -> dict[str, Any]:
    recurring = found.recurring
    return {
        "name": found.name,
        "capability": recurring.capability,
        "payload": recurring.payload,
        "schedule": recurring.schedule,
        "time_zone": recurring.time_zone,
        "by": recurring.by,
        "at": recurring.at,
    }


def _print(found: "list[Schedule]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("schedule", "when", "zone", "asks for", "payload", "set", "by"):
        table.add_column(heading, overflow="fold")
    for one in found:
        recurring = one.recurring
        table.add_row(
            one.name,
            recurring.schedule,
            recurring.time_zone or "UTC",
            recurring.capability,
            short_json(recurring.payload, 60),
            clock(recurring.at),
            recurring.by,
        )
    console.out().print(table)
