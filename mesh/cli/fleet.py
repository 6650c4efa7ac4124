"""`mesh agents`, `pause`, `resume`: who is there, and who takes work."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contracts.card import Described, Load
    from mesh.bus.connection import Bus

ASK_WITHIN_S = 0.5

CapabilityName = Annotated[str, typer.Argument(metavar="CAPABILITY", help="What agents are asked for.")]


@dataclass(frozen=True, slots=True)
class Offer:
    """One capability of one agent's version, and its load on each peer that has it."""

    capability: str
    agent: str
    version: str
    owner: str
    loads: "tuple[Load, ...]"
    queue_max: int = 0
    """How many tasks may wait in each lane; 0 for the mesh's default. The least where peers differ."""


def agents(
    within_s: Annotated[float, typer.Option(min=0.05, help="How long peers may take to answer.")] = ASK_WITHIN_S,
    as_json: AsJson = False,
) -> None:
    """List the live peers, their agents, what they can be asked for, and their load."""

    async def main() -> "list[Described]":
        async with console.connected() as bus:
            return await describe(bus, within_s=within_s)

    peers = console.run(main())
    if as_json:
        console.print_json({"peers": [msgspec.to_builtins(peer) for peer in peers]})
    elif not peers:
        console.note("no peer answers; start one with `mesh up my_agent.py`")
    else:
        _print(peers)


def pause(
    capability: CapabilityName,
    reason: Annotated[str, typer.Option(help="Why; it stands in the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Have peers take no more tasks of a capability; what runs goes on, what comes waits in its queue."""
    _order(capability, is_paused=True, reason=reason, as_json=as_json)


def resume(capability: CapabilityName, as_json: AsJson = False) -> None:
    """Take a pause back."""
    _order(capability, is_paused=False, reason="", as_json=as_json)


async def describe(bus: "Bus", *, within_s: float, enough: int = 0) -> "list[Described]":
    """What the live peers say of themselves, by id."""
    from contracts import wire
    from contracts.card import Described

    answers = await bus.gather(bus.subjects.ctl("all", "describe"), b"", within_s=within_s, enough=enough)
    return sorted(wire.readable(Described, answers), key=lambda peer: peer.beat.peer)


def _order(capability: str, *, is_paused: bool, reason: str, as_json: bool) -> None:
    from contracts.subjects import check_capability
    from mesh.bus import control

    check_capability(capability)

    async def main() -> int:
        async with console.connected() as bus:
            if is_paused:
                await control.pause(bus, capability, by=console.whoami(), reason=reason)
            else:
                await control.resume(bus, capability)
            peers = await describe(bus, within_s=ASK_WITHIN_S)
            return sum(capability in peer.beat.load for peer in peers)

    serving = console.run(main())
    if as_json:
        console.print_json({"capability": capability, "is_paused": is_paused, "peers": serving})
    else:
        served = "1 live peer serves it" if serving == 1 else f"{serving} live peers serve it"
        print(f"{capability} is {'paused' if is_paused else 'no longer paused'}; {served}")


def offers(peers: "Iterable[Described]") -> "list[Offer]":
    """What the peers can be asked for together: one offer for each capability of each agent and version."""
    found: dict[tuple[str, str, str, str], list[Load]] = {}
    bounds: dict[tuple[str, str, str, str], int] = {}
    for peer in peers:
        for card in peer.cards:
            for capability in card.capabilities:
                if (load := peer.beat.load.get(capability.name)) is not None:
                    key = (capability.name, card.name, card.version, card.owner)
                    found.setdefault(key, []).append(load)
                    bounds[key] = min(filter(None, (bounds.get(key), capability.queue_max)), default=0)
    return [Offer(*key, tuple(loads), bounds[key]) for key, loads in sorted(found.items())]


def _print(peers: "list[Described]") -> None:
    now = time.time()
    _table(
        ("peer", "state", "up", "running", "metrics"),
        [
            (
                peer.beat.peer,
                str(peer.beat.state),
                console.length(now - peer.beat.since),
                _running(peer.beat.load.values()),
                peer.metrics_url,
            )
            for peer in peers
        ],
    )
    print()
    _table(
        ("capability", "agent", "owner", "peers", "running", "bids", "mean run", "queue max"),
        [
            (
                _name(offer),
                f"{offer.agent} {offer.version}",
                offer.owner,
                str(len(offer.loads)),
                _running(offer.loads),
                _span([load.bid for load in offer.loads]),
                console.length(sum(load.service_s for load in offer.loads) / len(offer.loads)),
                f"{offer.queue_max:,}" if offer.queue_max else "default",
            )
            for offer in offers(peers)
        ],
    )


def _name(offer: Offer) -> str:
    if any(load.is_paused for load in offer.loads):
        return f"{offer.capability} (paused)"
    breakers = sorted({breaker for load in offer.loads for breaker in load.held_by})
    return f"{offer.capability} (breaker {', '.join(breakers)})" if breakers else offer.capability


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in _NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    console.out().print(table)


def _running(loads: "Iterable[Load]") -> str:
    loads = list(loads)
    return f"{sum(load.in_flight for load in loads)}/{sum(load.slots for load in loads)}"


def _span(bids: list[int]) -> str:
    return str(min(bids)) if min(bids) == max(bids) else f"{min(bids)}-{max(bids)}"


_NUMBERS = ("peers", "running", "bids", "mean run", "queue max")
