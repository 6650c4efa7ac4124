"""One snapshot for scripts: as text, and as data."""

from typing import Any

from mesh.cli.top.facts import Facts
from mesh.cli.top.model import CapabilityNow, Moment, Totals, capabilities, headline, totals, warning
from mesh.cli.top.rows import View, table
from mesh.cli.top.table import Table, plain


def text(facts: Facts, moment: Moment) -> list[str]:
    """Every screen, one below the other."""
    lines = [*headline(facts, moment)]
    if told := warning(facts, moment):
        lines.append(f"! {told}")
    for view in View:
        lines += ["", str(view), *(f"  {line}" for line in plain(table(view, facts, moment)))]
    return lines


def document(facts: Facts, moment: Moment) -> dict[str, Any]:
    """One snapshot as data. Sums that may be old are null."""
    all_of = totals(facts, moment)
    return {
        "at": moment.unix,
        "prefix": facts.prefix,
        "warning": warning(facts, moment),
        "totals": {name: getattr(all_of, name) for name in Totals.__slots__},
        "capabilities": [_capability_document(now) for now in capabilities(facts, moment)],
        **{str(view): _rows_document(table(view, facts, moment)) for view in View if view is not View.CAPABILITIES},
    }


def _capability_document(now: CapabilityNow) -> dict[str, Any]:
    loads = now.loads
    return {
        "capability": now.name,
        "state": now.state,
        "owner": now.owner,
        "agents": [card.label for card in now.cards],
        "contracts": list(dict.fromkeys(card.contract for card in now.cards)),
        "peers": [heard.beat.peer for heard in now.peers],
        "waiting": None if now.are_lanes_stale else now.waiting,
        "lanes": {
            lane: {"waiting": queue.waiting, "in_hand": queue.in_hand, "bound": queue.bound}
            for lane, queue in now.lanes.items()
        },
        "running": sum(load.in_flight for load in loads),
        "slots": sum(load.slots for load in loads),
        "rate": now.rate,
        "answered": sum(load.answered for load in loads),
        "failed": sum(load.failed for load in loads),
        "bids": [load.bid for load in loads],
        "is_paused": now.is_paused,
        "held_by": list(now.held_by),
    }


def _rows_document(found: Table) -> list[dict[str, Any]]:
    return [
        {
            column.name: cell.value if cell.value is not None else cell.text
            for column, cell in zip(found.columns, row.cells, strict=True)
        }
        for row in found.rows
    ]
