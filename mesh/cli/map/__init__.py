"""`mesh map`: who owns what, who asks whom, and which versions and contracts are live."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import console
from mesh.cli.console import AsJson

if TYPE_CHECKING:
    from mesh.cli.map.model import Map

ASK_WITHIN_S = 0.7


def map_(
    capability: Annotated[str | None, typer.Option("--capability", "-c", help="Only this one, and its edges.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only what this team owns, and its edges.")] = None,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart, for documents.")] = False,
    as_dot: Annotated[bool, typer.Option("--dot", help="Print a Graphviz graph: `| dot -Tsvg`.")] = False,
    within_s: Annotated[float, typer.Option(min=0.05, help="How long peers may take to answer.")] = ASK_WITHIN_S,
    as_json: AsJson = False,
) -> None:
    """Show who owns what, who asks whom, and which versions and contracts are live.

    Counts are of answered tasks since each live peer's start. What does not fit together stands below as notes.
    """
    from contracts.errors import ContractError
    from contracts.subjects import check_capability
    from mesh.cli.map import draw

    if as_json + as_mermaid + as_dot > 1:
        raise ContractError("--json, --mermaid and --dot exclude each other")
    if capability is not None:
        check_capability(capability)
    whole = console.run(_read(within_s))
    found = whole.only(capability=capability, owner=owner) if capability or owner is not None else whole
    if as_json:
        console.print_json(draw.document(found))
        return
    if not (found.services or found.unserved):
        raise console.Failed(_nothing(whole, capability, owner))
    drawn = draw.mermaid(found) if as_mermaid else draw.dot(found) if as_dot else draw.text(found, time.time())
    print("\n".join(drawn).rstrip("\n"))


async def _read(within_s: float) -> "Map":
    from collections import Counter

    from mesh.bus import glance
    from mesh.cli.fleet import describe
    from mesh.cli.map.model import drawn

    async with console.connected() as bus:
        peers = await describe(bus, within_s=within_s)
        waiting: Counter[str] = Counter()
        for queue in await glance.queues(bus):
            waiting[queue.capability] += queue.waiting + queue.in_hand
    return drawn(peers, waiting)


def _nothing(whole: "Map", capability: str | None, owner: str | None) -> str:
    known = sorted({service.capability for service in whole.services})
    if not known:
        return "no peer answers; start one with `mesh up my_agent.py`"
    if owner is not None:
        return f"nothing here is owned by {owner!r}; owners are {', '.join(one or '(nobody)' for one in whole.owners)}"
    return f"nobody serves {capability!r}, and it has no queue; live are {', '.join(known)}"
