"""`mesh breaker`: the circuit breakers that all peers share, and opening or closing one by hand."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from contracts.control import BreakerChange

FOR_S = 60.0

breaker = typer.Typer(name="breaker", help="Circuit breakers: list them, open or close one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As in `ctx.breaker(NAME)`.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the record.")]


@breaker.command("ls")
def list_(as_json: AsJson = False) -> None:
    """List the breakers that ever opened: their state, since when, and who decided it."""
    from mesh.bus import control

    async def main() -> "dict[str, BreakerChange]":
        async with console.connected() as bus:
            return await control.breakers(bus)

    found = console.run(main())
    if as_json:
        console.print_json({"breakers": [_shown(name, change) for name, change in found.items()]})
        return
    if not found:
        console.note("no breaker has opened yet")
        return
    now = time.time()
    for name, change in found.items():
        until = f", to be probed in {console.length(left)}" if (left := change.at + change.for_s - now) > 0 else ""
        why = f": {change.reason}" if change.reason else ""
        print(f"{name}  {change.state} for {console.length(now - change.at)} by {change.by}{until}{why}")


@breaker.command("open")
def open_(
    name: Name,
    for_s: Annotated[float, typer.Option(min=1, max=86_400, help="How long no call passes, in seconds.")] = FOR_S,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let no call pass, on any peer; after the time given one peer probes, as always."""
    _decide(name, state="open", for_s=for_s, reason=reason, as_json=as_json)


@breaker.command("close")
def close(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let calls pass again on all peers."""
    _decide(name, state="closed", for_s=0.0, reason=reason, as_json=as_json)


def _decide(name: str, *, state: str, for_s: float, reason: str, as_json: bool) -> None:
    from contracts.control import BreakerChange
    from contracts.subjects import check_breaker_name
    from mesh.bus import control

    check_breaker_name(name)
    change = BreakerChange(state=state, at=time.time(), for_s=for_s, by=console.whoami(), reason=reason)

    async def main() -> None:
        async with console.connected() as bus:
            await control.change_breaker(bus, name, change, after=None)

    console.run(main())
    if as_json:
        console.print_json(_shown(name, change))
    else:
        print(f"{name} is {state}" + (f" for {console.length(for_s)}" if for_s else ""))


def _shown(name: str, change: "BreakerChange") -> dict[str, Any]:
    return {
        "breaker": name,
        "state": change.state,
        "at": change.at,
        "for_s": change.for_s,
        "by": change.by,
        "reason": change.reason,
    }
