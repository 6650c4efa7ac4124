"""`mesh limits`: how much of what all peers share may be used, and how much of it is."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mesh.cli import console
from mesh.cli.console import AsJson, clock

if TYPE_CHECKING:
    from contracts.limit import Limit, Rate, Seats
    from mesh.bus.connection import Bus

limits = typer.Typer(
    name="limits",
    help="What all peers share under a limit, such as an LLM provider: set, list and take limits away.",
    no_args_is_help=True,
)

Resource = Annotated[str, typer.Argument(metavar="RESOURCE", help="The name that handlers give to `ctx.limit`.")]


@dataclass(frozen=True, slots=True)
class Use:
    """A resource, its limit, and what is in use of it. Buckets are told in requests and tokens that they hold now."""

    resource: str
    limit: "Limit"
    is_set: bool
    seats: dict[str, int]
    waiting: int
    requests: float | None
    tokens: float | None
    next_in_s: float | None


@limits.command("set")
def set_(
    resource: Resource,
    concurrent: Annotated[int | None, typer.Option(help="Calls that may run at once.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Calls that may start in a minute.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Tokens that calls may use in a minute.")] = None,
    burst_s: Annotated[
        float, typer.Option(help="What an idle bucket holds, as seconds of its rate; the most that one call may ask.")
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Set a resource's limit for all peers, in place of the one before. What is left out is not limited."""
    from contracts.limit import Limit
    from mesh.bus import control

    limit = Limit(
        concurrent=concurrent,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        burst_s=burst_s,
        at=time.time(),
        by=console.whoami(),
    )

    async def main() -> None:
        async with console.connected() as bus:
            await console.check_made(bus)
            await control.set_limit(bus, resource, limit)

    console.run(main())
    if as_json:
        console.print_json({"resource": resource, **_document(limit)})
    else:
        print(f"{resource}: {told(limit)}")


@limits.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List limits, who holds seats, what the buckets hold, and how long the next caller waits.

    A limit that only code declares is listed once it was used.
    """

    async def main() -> list[Use]:
        async with console.connected() as bus:
            await console.check_made(bus)
            return await uses_of(bus)

    found = console.run(main())
    if as_json:
        console.print_json({"limits": [_use_document(use) for use in found]})
    elif not found:
        console.note("no limits; `mesh limits set` makes one")
    else:
        _print(found)


@limits.command("rm")
def rm(resource: Resource, as_json: AsJson = False) -> None:
    """Take a limit away. What code declares for the resource stands then, or nothing is limited."""
    from mesh.bus import control

    async def main() -> bool:
        async with console.connected() as bus:
            await console.check_made(bus)
            return await control.drop_limit(bus, resource)

    if not console.run(main()):
        raise console.Failed(f"no limit is set for {resource!r}; `mesh limits ls` lists them")
    if as_json:
        console.print_json({"resource": resource, "is_removed": True})
    else:
        print(f"{resource} has no limit but what code declares")


def told(limit: "Limit") -> str:
    """A limit in words."""
    parts = []
    if limit.concurrent is not None:
        parts.append(f"{limit.concurrent} at once")
    if limit.requests_per_minute is not None:
        parts.append(f"{limit.requests_per_minute:,g} requests/min")
    if limit.tokens_per_minute is not None:
        parts.append(f"{limit.tokens_per_minute:,g} tokens/min")
    burst = f", buckets of {limit.burst_s:g} s" if limit.has_rate and limit.burst_s != 60 else ""
    return ", ".join(parts) + burst


async def uses_of(bus: "Bus") -> list[Use]:
    """Every resource that has a limit or is in use, by name."""
    from mesh.bus import control, topology
    from mesh.bus.limits import in_use

    set_limits = await control.limits(bus)
    now = 0.0
    seats: dict[str, Seats] = {}
    rates: dict[str, tuple[Rate, float]] = {}
    spec = next(spec for spec in topology.streams(bus.settings) if spec.name == bus.subjects.limit_stream)
    if await topology.inspect(bus, spec) is not None:
        now, seats, rates = await in_use(bus)
    uses = []
    for resource in sorted({*set_limits, *seats, *rates}):
        rate, stored_at = rates.get(resource, (None, 0.0))
        taken = seats.get(resource)
        limit = set_limits.get(resource)
        declared = next((record.limit for record in (rate, taken) if record and record.limit is not None), None)
        if limit is None and (declared is None or declared.at):
            # What an operator had set and took away: nobody goes by it any more.
            continue
        uses.append(use_of(resource, limit or declared, limit is not None, taken, rate, stored_at, now))
    return uses


def use_of(
    resource: str,
    limit: "Limit | None",
    is_set: bool,
    seats: "Seats | None",
    rate: "Rate | None",
    stored_at: float,
    now: float,
) -> Use:
    """What is in use of a resource at a time of the server's."""
    from contracts.limit import Rate
    from mesh.limits import price_of
    from mesh.resilience.rate import turn_of
    from mesh.resilience.seats import alive
    from mesh.workflow.limits import level_at

    assert limit is not None
    price, level = price_of(limit), level_at(rate or Rate(), stored_at)
    holdings = alive(seats.holdings, now) if seats is not None else {}

    def holds(until: float, burst_s: float, cost_s: float) -> float | None:
        return min(burst_s, burst_s - (until - now)) / cost_s if cost_s else None

    return Use(
        resource=resource,
        limit=limit,
        is_set=is_set,
        seats={peer: holding.seats for peer, holding in sorted(holdings.items()) if holding.seats},
        waiting=sum(holding.wants for holding in holdings.values()),
        requests=holds(level.requests.until, price.requests_burst_s, price.request_s),
        tokens=holds(level.tokens.until, price.tokens_burst_s, price.token_s),
        next_in_s=max(0.0, turn_of(level, price, 0, now=now) - now) if limit.has_rate else None,
    )


def _document(limit: "Limit") -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(limit)
    document.pop("v", None)
    return {"burst_s": limit.burst_s, **document}


def _use_document(use: Use) -> dict[str, Any]:
    return {
        "resource": use.resource,
        **_document(use.limit),
        "is_set": use.is_set,
        "seats": use.seats,
        "waiting": use.waiting,
        "requests": use.requests,
        "tokens": use.tokens,
        "next_in_s": use.next_in_s,
    }


def _print(found: list[Use]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("resource", "limit", "set", "seats held", "want one", "requests left", "tokens left", "next in"):
        table.add_column(heading, overflow="fold")
    for use in found:
        held = sum(use.seats.values())
        of = f"/{use.limit.concurrent}" if use.limit.concurrent is not None else ""
        by_peer = ", ".join(f"{peer} {seats}" for peer, seats in use.seats.items())
        table.add_row(
            use.resource,
            told(use.limit),
            f"{clock(use.limit.at)} {use.limit.by}".strip() if use.is_set else "in code",
            f"{held}{of}{f' ({by_peer})' if by_peer else ''}" if of or held else "",
            str(use.waiting) if of else "",
            _left(use.requests),
            _left(use.tokens),
            console.length(use.next_in_s) if use.next_in_s is not None else "",
        )
    console.out().print(table)


def _left(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.1f}" if abs(amount) < 10 else f"{amount:,.0f}"
