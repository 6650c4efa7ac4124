"""One thing at a time: everything known of a capability or a peer, as lines."""

from collections.abc import Iterable

from contracts.card import PeerState
from mesh.cli.console import clock, length, one_line
from mesh.cli.top.facts import Facts
from mesh.cli.top.model import LANES, Moment, capabilities, state_of
from mesh.cli.top.table import NOTHING, UNKNOWN


def capability_lines(name: str, facts: Facts, moment: Moment) -> list[str]:
    """Everything known of one capability."""
    now = next((one for one in capabilities(facts, moment) if one.name == name), None)
    if now is None:
        return [f"{name}: no live peer serves it, and it has no queue"]
    lines = [f"{name}   {now.state}"]
    for card in now.cards:
        lines.append(f"  {card.label or '(no name)'}   owner {card.owner or '(nobody)'}   contract {card.contract}")
        if card.description:
            lines.append(f"    {one_line(card.description)}")
    if (pause := facts.pauses.value.get(name)) is not None:
        why = f": {one_line(pause.reason)}" if pause.reason else ""
        lines.append(f"  paused {clock(pause.at)} by {one_line(pause.by, 40)}{why}")
    lines.append("")
    mark = UNKNOWN if now.are_lanes_stale else ""
    for lane, queue in sorted(now.lanes.items(), key=lambda item: _lane_order(item[0])):
        bound = f" of {queue.bound:,}" if queue.bound else ""
        lines.append(f"  {lane:<8} {queue.waiting:,}{mark} waiting{bound}   {queue.in_hand:,}{mark} handed out")
    if not now.lanes:
        lines.append("  its queue is not known")
    lines.append("")
    columns = ("peer", "running", "per s", "mean run", "bid", "answered", "failed", "held by")
    rows = []
    for heard in now.peers:
        load, rate = heard.beat.load[name], heard.rate(name)
        rows.append(
            (
                heard.beat.peer,
                f"{load.in_flight}/{load.slots}",
                UNKNOWN if rate is None else f"{rate:,.1f}",
                length(load.service_s) if load.service_s else NOTHING,
                str(load.bid),
                f"{load.answered:,}",
                f"{load.failed:,}",
                ", ".join(load.held_by),
            )
        )
    return [*lines, *(_grid(columns, rows) if rows else ["  no live peer serves it"])]


def peer_lines(name: str, facts: Facts, moment: Moment) -> list[str]:
    """Everything known of one peer."""
    heard = facts.peers.get(name)
    if heard is None:
        return [f"{name}: not heard any more"]
    beat = heard.beat
    late_s = max(0.0, moment.at - heard.at)
    skew_s = beat.at - (moment.unix - late_s)
    lines = [
        f"{name}   {state_of(heard, facts, moment)}",
        f"  last beat {late_s:.1f} s ago, one comes every {heard.interval_s:.1f} s, its clock is {skew_s:+.1f} s off",
        f"  on {beat.host}, process {beat.pid}, since {clock(beat.since)}",
        f"  agents {', '.join(beat.agents)}",
    ]
    if url := facts.metrics_urls.get(name):
        lines.append(f"  metrics {url}")
    lines.append("")
    columns = ("capability", "running", "per s", "mean run", "bid", "answered", "failed", "state")
    rows = []
    for capability, load in sorted(beat.load.items()):
        rate = heard.rate(capability)
        held = f"held: {', '.join(load.held_by)}" if load.held_by else ""
        rows.append(
            (
                capability,
                f"{load.in_flight}/{load.slots}",
                UNKNOWN if rate is None else f"{rate:,.1f}",
                length(load.service_s) if load.service_s else NOTHING,
                str(load.bid),
                f"{load.answered:,}",
                f"{load.failed:,}",
                "paused" if load.is_paused else held,
            )
        )
    is_old = state_of(heard, facts, moment) not in {str(state) for state in PeerState}
    return [*lines, *(["  as its last beat told:"] if is_old else []), *_grid(columns, rows)]


def _grid(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    grid = [tuple(columns), *rows]
    widths = [max(len(line[place]) for line in grid) for place in range(len(grid[0]))]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid
    ]


def _lane_order(lane: str) -> int:
    return LANES.index(lane) if lane in LANES else len(LANES)
