"""The screens of `mesh top` as tables: facts and a time in, rows out."""

from enum import StrEnum
from typing import Any

from contracts.card import PeerState
from mesh.cli.console import clock, length, one_line
from mesh.cli.inbox import limit_words
from mesh.cli.limits import told as limit_told
from mesh.cli.top.facts import Facts, Look
from mesh.cli.top.model import LANES, LOOK_S, CapabilityNow, Moment, Peerage, capabilities, is_stale, live, state_of
from mesh.cli.top.table import NOTHING, UNKNOWN, Cell, Column, Row, Table, number, word
from mesh.endings import HUMAN
from mesh.inbox import handles


class View(StrEnum):
    """The screens, in their order."""

    CAPABILITIES = "capabilities"
    PEERS = "peers"
    BREAKERS = "breakers"
    LIMITS = "limits"
    INBOX = "inbox"
    STUCK = "stuck"
    EVENTS = "events"


def table(view: View, facts: Facts, moment: Moment) -> Table:
    """The rows of a screen."""
    match view:
        case View.CAPABILITIES:
            return _capabilities(facts, moment)
        case View.PEERS:
            return _peers(facts, moment)
        case View.BREAKERS:
            return _breakers(facts, moment)
        case View.LIMITS:
            return _limits(facts, moment)
        case View.INBOX:
            return _inbox(facts, moment)
        case View.STUCK:
            return _stuck(facts, moment)
        case View.EVENTS:
            return _events(facts, moment)


def _capabilities(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("capability"),
        Column("state"),
        Column("waiting", is_number=True),
        Column("running", is_number=True),
        Column("per s", is_number=True),
        Column("mean run", is_number=True),
        Column("bids", is_number=True),
        Column("peers", is_number=True),
        Column("owner"),
        *(Column(lane, is_number=True) for lane in LANES),
        Column("bound", is_number=True),
        Column("failed", is_number=True),
    )
    rows = [Row(now.name, _capability_cells(now)) for now in capabilities(facts, moment)]
    return Table(columns, tuple(rows), empty="no capability is served, and none has a queue")


def _capability_cells(now: CapabilityNow) -> tuple[Cell, ...]:
    loads, stale = now.loads, now.are_lanes_stale
    waiting = number(now.waiting, is_stale=stale) if now.lanes or not stale else Cell(UNKNOWN)
    lanes = (number(now.lanes[lane].waiting, is_stale=stale) if lane in now.lanes else Cell("") for lane in LANES)
    bound = max((lane.bound for lane in now.lanes.values()), default=0)
    bounds = number(bound, is_stale=stale) if bound else Cell(NOTHING)
    if not loads:
        none = Cell(NOTHING if now.is_known else UNKNOWN)
        peers = number(0) if now.is_known else Cell(UNKNOWN)
        return (word(now.name), word(now.state), waiting, none, none, none, none, peers, word(now.owner), *lanes,
                bounds, none)  # fmt: skip
    running, slots = sum(load.in_flight for load in loads), sum(load.slots for load in loads)
    busy = [load.service_s for load in loads if load.service_s]
    mean_s = sum(busy) / len(busy) if busy else None
    bids = [load.bid for load in loads]
    span = f"{min(bids)}" if min(bids) == max(bids) else f"{min(bids)}-{max(bids)}"
    return (
        word(now.name),
        word(now.state),
        waiting,
        number(running, f"{running}/{slots}"),
        _rate(now.rate),
        Cell(NOTHING) if mean_s is None else number(mean_s, length(mean_s)),
        number(min(bids), span),
        number(len(loads)),
        word(now.owner),
        *lanes,
        bounds,
        number(sum(load.failed for load in loads)),
    )


def _rate(rate: float | None) -> Cell:
    return Cell(UNKNOWN) if rate is None else number(rate, f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}")


def _peers(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("peer"),
        Column("state"),
        Column("last beat", is_number=True),
        Column("running", is_number=True),
        Column("per s", is_number=True),
        Column("up", is_number=True),
        Column("host"),
        Column("pid", is_number=True),
        Column("agents"),
        Column("capabilities"),
    )
    own = {str(state) for state in PeerState}
    rows = []
    for name, heard in sorted(facts.peers.items()):
        state, beat = state_of(heard, facts, moment), heard.beat
        loads = beat.load.values()
        is_live = state in own
        running, slots = sum(load.in_flight for load in loads), sum(load.slots for load in loads)
        rates = [rate for one in beat.load if (rate := heard.rate(one)) is not None]
        unknown = Cell(NOTHING if state == Peerage.GONE else UNKNOWN)
        late_s = max(0.0, moment.at - heard.at)
        rows.append(
            Row(
                name,
                (
                    word(name),
                    word(state),
                    number(late_s, f"{late_s:.1f} s" if late_s < 10 else length(late_s)),
                    number(running, f"{running}/{slots}") if is_live else unknown,
                    _rate(sum(rates) if rates else None) if is_live else unknown,
                    number(moment.unix - beat.since, length(max(0.0, moment.unix - beat.since)))
                    if is_live
                    else unknown,
                    word(beat.host),
                    number(beat.pid, str(beat.pid)),
                    word(", ".join(beat.agents)),
                    word(", ".join(sorted(beat.load))),
                ),
            )
        )
    return Table(columns, tuple(rows), empty="no peer was heard yet")


def _breakers(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("breaker"),
        Column("state"),
        Column("for", is_number=True),
        Column("probed in", is_number=True),
        Column("by"),
        Column("holds"),
        Column("reason"),
    )
    held: dict[str, set[str]] = {}
    for heard in live(facts, moment):
        for name, load in heard.beat.load.items():
            for breaker in load.held_by:
                held.setdefault(breaker, set()).add(name)
    stale = is_stale(facts.breakers, LOOK_S["controls"], facts, moment)
    rows = []
    for name, change in sorted(facts.breakers.value.items()):
        since_s, left_s = moment.unix - change.at, change.at + change.for_s - moment.unix
        is_probed = change.state == "open" and left_s > 0
        rows.append(
            Row(
                name,
                (
                    word(name),
                    word(f"{change.state}?" if stale else change.state),
                    number(since_s, length(max(0.0, since_s))),
                    number(left_s, length(left_s)) if is_probed else Cell(NOTHING),
                    word(one_line(change.by, 30)),
                    word(", ".join(sorted(held.get(name, ())))),
                    word(one_line(change.reason)),
                ),
            )
        )
    return Table(columns, tuple(rows), empty=_asked(facts.breakers, "no breaker has opened yet"))


def _limits(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("resource"),
        Column("limit"),
        Column("held", is_number=True),
        Column("want one", is_number=True),
        Column("requests left", is_number=True),
        Column("tokens left", is_number=True),
        Column("next in", is_number=True),
        Column("set by"),
    )
    stale = is_stale(facts.limits, LOOK_S["limits"], facts, moment)
    rows = []
    for use in facts.limits.value:
        held, most = sum(use.seats.values()), use.limit.concurrent
        nothing = Cell(NOTHING)
        rows.append(
            Row(
                use.resource,
                (
                    word(use.resource),
                    word(limit_told(use.limit)),
                    number(held, f"{held}/{most}" if most is not None else f"{held}", is_stale=stale),
                    number(use.waiting, is_stale=stale) if most is not None else nothing,
                    nothing if use.requests is None else number(use.requests, is_stale=stale),
                    nothing if use.tokens is None else number(use.tokens, is_stale=stale),
                    nothing if use.next_in_s is None else number(use.next_in_s, length(use.next_in_s), is_stale=stale),
                    word(one_line(use.limit.by, 30) if use.is_set else "code"),
                ),
            )
        )
    return Table(columns, tuple(rows), empty=_asked(facts.limits, "no limits are set or in use"))


def _inbox(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("proposal"),
        Column("waits", is_number=True),
        Column("asked by"),
        Column("sure", is_number=True),
        Column("decides itself"),
        Column("for"),
        Column("reason"),
    )
    shown = facts.inbox.value.shown
    short = handles([question.task.id for question in shown])
    stale = is_stale(facts.inbox, LOOK_S["inbox"], facts, moment)
    rows = []
    for question in shown:
        proposal, waits_s = question.proposal, max(0.0, moment.unix - question.asked_at)
        sure = proposal.confidence
        rows.append(
            Row(
                question.task.id,
                (
                    word(short[question.task.id]),
                    number(waits_s, length(waits_s), is_stale=stale),
                    word(one_line(proposal.asked_by, 40)),
                    Cell("") if sure is None else number(sure, f"{sure:.2g}"),
                    word(limit_words(question, moment.unix)),
                    word(one_line(", ".join(proposal.who), 40)),
                    word(one_line(proposal.reason)),
                ),
                task=f"{HUMAN}/{question.task.id}",
            )
        )
    return Table(columns, tuple(rows), empty=_asked(facts.inbox, "nothing waits for people"))


def _stuck(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("what"),
        Column("capability"),
        Column("tasks", is_number=True),
        Column("oldest", is_number=True),
        Column("what helps"),
    )
    rows = []
    letters, stale = facts.letters.value, is_stale(facts.letters, LOOK_S["letters"], facts, moment)
    known = {name: one for name, one in letters.by_capability.items() if one.count}
    for name, one in sorted(known.items()):
        rows.append(_standing("dead letters", name, one.count, one.oldest_at, moment, stale, "mesh dead ls, redrive"))
    if more := letters.all.count - sum(one.count for one in known.values()):
        rows.append(
            _standing("dead letters", "(others)", more, letters.all.oldest_at, moment, stale, "mesh dead ls, redrive")
        )
    stale = is_stale(facts.unserved, LOOK_S["unserved"], facts, moment)
    for name, count in sorted(facts.unserved.value.items()):
        rows.append(_standing("never served", name, count, None, moment, stale, "start a peer, or cancel: a slip?"))
    for now in capabilities(facts, moment):
        if now.is_known and not now.peers and now.waiting:
            stale = now.are_lanes_stale
            rows.append(_standing("no live peer", now.name, now.waiting, None, moment, stale, "start a peer"))
        elif now.is_paused and now.waiting:
            rows.append(
                _standing("paused", now.name, now.waiting, None, moment, now.are_lanes_stale, f"mesh resume {now.name}")
            )
    error = facts.letters.error or facts.unserved.error
    return Table(columns, tuple(rows), empty=f"not known: {error}" if error else _asked(facts.letters, "nothing"))


def _standing(
    what: str, name: str, count: int, oldest_at: float | None, moment: Moment, stale: bool, helps: str
) -> Row:
    age = Cell("") if oldest_at is None else number(moment.unix - oldest_at, length(moment.unix - oldest_at))
    cells = (word(what), word(name), number(count, is_stale=stale), age, word(helps))
    return Row(f"{what} {name}", cells)


def _events(facts: Facts, moment: Moment) -> Table:
    columns = (
        Column("time"),
        Column("event"),
        Column("task"),
        Column("peer"),
        Column("detail"),
    )
    rows = []
    for event in facts.events:
        task = f"{event.capability}/{event.id}" if event.capability and event.id else ""
        rows.append(
            Row(
                # The same event keeps its key while older ones are dropped.
                f"{event.at!r} {event.kind} {event.peer} {task} {event.detail}",
                (
                    Cell(clock(event.at), event.at),
                    word(one_line(event.kind, 20)),
                    word(one_line(task, 48)),
                    word(event.peer),
                    word(one_line(event.detail)),
                ),
                task=task,
            )
        )
    once = {row.key: row for row in reversed(rows)}
    return Table(columns, tuple(once.values()), empty="nothing happened since this was opened; `mesh events` has more")


def _asked(look: Look[Any], otherwise: str) -> str:
    if look.error:
        return f"not known: {look.error}"
    return "not known yet" if look.at is None else otherwise
