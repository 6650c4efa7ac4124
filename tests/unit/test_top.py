"""What `mesh top` makes of facts: states, sums, marks of what is old, order and filters."""

from typing import Any

import pytest

from contracts.card import AgentCard, Beat, CapabilityCard, Described, Load, PeerState
from contracts.control import BreakerChange, Pause
from contracts.event import Event
from mesh.bus.glance import QueueLook, Standing
from mesh.cli.top.details import capability_lines, peer_lines
from mesh.cli.top.facts import EVENTS_MAX, FORGET_AFTER_S, PEERS_MAX, Facts, Letters
from mesh.cli.top.model import LOOK_S, Moment, capabilities, headline, live, state_of, totals, warning
from mesh.cli.top.rows import View, table
from mesh.cli.top.snapshot import document, text
from mesh.cli.top.table import Cell, Column, Row, Table, number, plain, word

UNIX = 1_800_000_000.0
BEAT_S = 2.0


class Scene:
    """Facts on a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0
        self.facts = Facts("mesh", "localhost:4222", BEAT_S, connected_at=self.at)
        self.answered = dict[str, int]()

    @property
    def moment(self) -> Moment:
        return Moment(self.at, UNIX + self.at)

    def beat(self, peer: str, *, state: PeerState = PeerState.READY, **loads: Load) -> None:
        beat = Beat(peer=peer, at=UNIX + self.at, state=state, since=UNIX, host="box", pid=7, load=loads)
        self.facts.beat_heard(beat, self.at)

    def looked(self, *queues: QueueLook) -> None:
        facts = self.facts
        facts.queues.took(queues, self.at)
        facts.pauses.took({}, self.at)
        facts.breakers.took({}, self.at)
        facts.limits.took([], self.at)
        facts.inbox.took(facts.inbox.value, self.at)
        facts.letters.took(Letters(), self.at)
        facts.unserved.took({}, self.at)

    def rows(self, view: View) -> dict[str, dict[str, str]]:
        found = table(view, self.facts, self.moment)
        return {
            row.key: {column.name: cell.text for column, cell in zip(found.columns, row.cells, strict=True)}
            for row in found.rows
        }


@pytest.fixture
def scene() -> Scene:
    return Scene()


def queue(capability: str, waiting: int, *, lane: str = "normal", bound: int = 100, in_hand: int = 0) -> QueueLook:
    return QueueLook(capability, lane, waiting, in_hand, bound)


def test_sums_and_rates_come_from_the_beats_of_all_live_peers(scene: Scene) -> None:
    for answered in (10, 30):
        scene.beat("a", add=Load(slots=4, in_flight=1, answered=answered, bid=1, service_s=0.1))
        scene.beat("b", add=Load(slots=4, in_flight=3, answered=2 * answered, bid=3, service_s=0.3))
        scene.at += BEAT_S
    scene.looked(queue("add", 5), queue("add", 2, lane="urgent"))

    (row,) = scene.rows(View.CAPABILITIES).values()
    first, second = headline(scene.facts, scene.moment)

    assert (row["waiting"], row["running"], row["per s"], row["bids"], row["peers"]) == ("7", "4/8", "30.0", "1-3", "2")
    assert (row["urgent"], row["normal"], row["bulk"], row["mean run"]) == ("2", "5", "", "200 ms")
    assert first == "2 live peers   30.0 answers/s   4/8 running   7 waiting"
    assert second == "inbox 0   dead letters 0   unserved 0   breakers open 0   paused 0"


def test_a_silent_peer_is_in_no_sum_and_later_gone(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=4, in_flight=4))
    states = []
    for _ in range(12):
        states.append(state_of(scene.facts.peers["a"], scene.facts, scene.moment))
        scene.at += BEAT_S
    scene.looked()

    assert states == ["ready"] * 4 + ["silent"] * 7 + ["gone"]
    assert totals(scene.facts, scene.moment).peers == totals(scene.facts, scene.moment).running == 0
    assert scene.rows(View.PEERS)["a"]["running"] == "-"
    assert capabilities(scene.facts, scene.moment) == []


def test_a_peer_that_says_it_leaves_is_gone_at_once_and_forgotten_later(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=4))
    scene.facts.event_heard(Event(kind="left", at=UNIX, peer="a"))
    at_once = state_of(scene.facts.peers["a"], scene.facts, scene.moment)
    scene.at += FORGET_AFTER_S + 1
    scene.facts.forget(scene.at)

    assert at_once == "gone"
    assert scene.facts.peers == {}


def test_a_peer_that_beats_more_slowly_than_others_is_not_taken_for_silent(scene: Scene) -> None:
    for _ in range(10):
        scene.beat("a", add=Load(slots=4))
        scene.at += 2 * BEAT_S
    scene.at += BEAT_S

    assert [heard.beat.peer for heard in live(scene.facts, scene.moment)] == ["a"]


def test_while_the_connection_is_gone_nothing_is_shown_as_new(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=4, in_flight=2))
    scene.looked(queue("add", 5))
    scene.facts.connection(False, scene.at)
    scene.at += 60.0

    row = scene.rows(View.CAPABILITIES)["add"]
    assert (row["state"], row["waiting"], row["running"], row["peers"]) == ("?", "5?", "?", "?")
    assert scene.rows(View.PEERS)["a"]["state"] == "?"
    assert set(vars_of(totals(scene.facts, scene.moment)).values()) == {None}
    assert "NOT CONNECTED since" in warning(scene.facts, scene.moment)
    scene.facts.forget(scene.at)
    assert "a" in scene.facts.peers, "nobody knows whether it is gone"


def vars_of(sums: Any) -> dict[str, Any]:
    return {name: getattr(sums, name) for name in type(sums).__slots__}


def test_after_a_reconnection_a_peer_is_unknown_until_its_beat_and_then_as_before(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=4))
    scene.facts.connection(False, scene.at)
    scene.at += 600.0
    scene.facts.connection(True, scene.at)

    unheard = state_of(scene.facts.peers["a"], scene.facts, scene.moment)
    scene.beat("a", add=Load(slots=4))
    heard = state_of(scene.facts.peers["a"], scene.facts, scene.moment)
    interval_s = scene.facts.peers["a"].interval_s

    assert (unheard, heard) == ("?", "ready")
    assert interval_s == BEAT_S, "the break says nothing of how often it beats"


def test_a_number_that_was_not_asked_for_again_is_marked(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=4))
    scene.looked(queue("add", 5))
    before = scene.rows(View.CAPABILITIES)["add"]["waiting"]
    scene.at += 3 * LOOK_S["queues"] + 0.1
    scene.beat("a", add=Load(slots=4))
    after = scene.rows(View.CAPABILITIES)["add"]["waiting"]

    assert (before, after) == ("5", "5?")
    assert totals(scene.facts, scene.moment).waiting is None


def test_what_could_not_be_asked_for_says_so(scene: Scene) -> None:
    scene.looked()
    scene.facts.inbox.error = "no answer within 5 s"

    found = table(View.INBOX, scene.facts, scene.moment)

    assert found.empty == "not known: no answer within 5 s"
    assert warning(scene.facts, scene.moment) == "not known now: inbox (inbox: no answer within 5 s)"
    assert totals(scene.facts, scene.moment).inbox is None


@pytest.mark.parametrize(
    ("load", "waiting", "state"),
    [
        (Load(slots=1), 0, "ok"),
        (Load(slots=1, held_by=("llm",)), 0, "held: llm"),
        (Load(slots=1), 85, "85% full"),
        (Load(slots=1), 100, "FULL"),
    ],
)
def test_the_state_of_a_capability_is_what_an_operator_should_know_first(
    scene: Scene, load: Load, waiting: int, state: str
) -> None:
    scene.beat("a", add=load)
    scene.looked(queue("add", waiting))

    assert scene.rows(View.CAPABILITIES)["add"]["state"] == state


def test_a_pause_counts_at_once_and_a_resume_too(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=1, is_paused=False), sub=Load(slots=1, is_paused=True))
    scene.looked()
    scene.facts.pauses.took({"add": Pause(at=UNIX, by="me")}, scene.at)

    states = {name: row["state"] for name, row in scene.rows(View.CAPABILITIES).items()}

    assert states == {"add": "PAUSED", "sub": "ok"}
    assert "paused" in capability_lines("add", scene.facts, scene.moment)[1]


def test_what_nobody_will_take_is_stuck(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=1))
    scene.looked(queue("lost", 3))
    scene.facts.letters.took(
        Letters(Standing(5, UNIX), {"add": Standing(3, UNIX), "sub": Standing(0)}),
        scene.at,
    )
    scene.facts.unserved.took({"ad": 2}, scene.at)

    stuck = {key: row["tasks"] for key, row in scene.rows(View.STUCK).items()}

    assert stuck == {
        "dead letters add": "3",
        "dead letters (others)": "2",
        "never served ad": "2",
        "no live peer lost": "3",
    }
    assert totals(scene.facts, scene.moment).unserved == 5
    assert scene.rows(View.CAPABILITIES)["lost"]["state"] == "NO PEER"


def test_breakers_tell_when_they_are_probed_and_what_they_hold(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=1, held_by=("llm",)))
    scene.looked()
    now = scene.moment.unix
    change = BreakerChange(state="open", at=now - 20, for_s=30.0, by="box-1", reason="too\nslow")
    scene.facts.breakers.took({"llm": change}, scene.at)

    row = scene.rows(View.BREAKERS)["llm"]

    assert (row["state"], row["for"], row["probed in"], row["holds"]) == ("open", "20 s", "10 s", "add")
    assert row["reason"] == "too slow"


def test_cards_tell_owner_and_contract_and_outlive_their_peers(scene: Scene) -> None:
    card = CapabilityCard(name="add", input_schema={"type": "integer"}, description="Add.")
    agent = AgentCard(name="adder", version="2", owner="sums", capabilities=(card,))
    scene.beat("a", add=Load(slots=1))
    scene.looked(queue("add", 1))
    beat = scene.facts.peers["a"].beat
    scene.facts.described([Described(beat=beat, cards=(agent,), metrics_url="http://x")])
    scene.facts.described([])

    assert scene.rows(View.CAPABILITIES)["add"]["owner"] == "sums"
    lines = "\n".join(capability_lines("add", scene.facts, scene.moment))
    assert f"adder 2   owner sums   contract {card.contract}" in lines
    assert "1 waiting of 100" in lines
    assert "metrics http://x" in "\n".join(peer_lines("a", scene.facts, scene.moment))
    assert peer_lines("b", scene.facts, scene.moment) == ["b: not heard any more"]


def test_what_is_kept_is_bounded(scene: Scene) -> None:
    for number_ in range(PEERS_MAX + 10):
        scene.beat(f"p{number_}")
        scene.facts.event_heard(Event(kind="retried", at=UNIX + number_, peer="a", capability="add", id=str(number_)))
    for _ in range(1_000):
        scene.at += 0.1
        scene.beat("p0", add=Load(slots=1))

    assert len(scene.facts.peers) == PEERS_MAX
    assert len(scene.facts.events) == EVENTS_MAX
    assert len(scene.facts.peers["p0"].counts) < 110
    assert len(table(View.EVENTS, scene.facts, scene.moment).rows) == EVENTS_MAX


def test_events_show_the_newest_first_and_equal_ones_once(scene: Scene) -> None:
    for second in (1, 2, 2):
        scene.facts.event_heard(Event(kind="retried", at=UNIX + second, peer="a", capability="add", id="x"))

    rows = table(View.EVENTS, scene.facts, scene.moment).rows

    assert [row.cells[0].value for row in rows] == [UNIX + 2, UNIX + 1]
    assert {row.task for row in rows} == {"add/x"}


def test_a_snapshot_has_every_screen_as_text_and_as_data(scene: Scene) -> None:
    scene.beat("a", add=Load(slots=1))
    scene.looked(queue("add", 1))

    told, data = "\n".join(text(scene.facts, scene.moment)), document(scene.facts, scene.moment)

    assert all(str(view) in told and str(view) in data for view in View)
    assert data["totals"]["peers"] == 1
    assert data["capabilities"][0]["lanes"] == {"normal": {"waiting": 1, "in_hand": 0, "bound": 100}}
    assert data["peers"][0]["state"] == "ready"


TABLE = Table(
    (Column("name"), Column("n", is_number=True)),
    tuple(
        Row(name, (word(name), value))
        for name, value in (("b", number(2)), ("a", number(10)), ("c", Cell("?")), ("D d", number(2, is_stale=True)))
    ),
)


@pytest.mark.parametrize(
    ("column", "is_descending", "order"),
    [
        (0, False, ["a", "b", "c", "D d"]),
        (0, True, ["D d", "c", "b", "a"]),
        (1, False, ["b", "D d", "a", "c"]),
        (1, True, ["a", "b", "D d", "c"]),
        (9, False, ["b", "a", "c", "D d"]),
    ],
)
def test_rows_are_sorted_by_value_and_the_unknown_stands_last(
    column: int, is_descending: bool, order: list[str]
) -> None:
    assert [row.key for row in TABLE.by(column, is_descending=is_descending).rows] == order


def test_rows_are_chosen_by_words_in_any_cell() -> None:
    assert [row.key for row in TABLE.containing("d 2").rows] == ["D d"]
    assert TABLE.containing(" ") is TABLE
    assert TABLE.containing("[x").empty == "nothing here matches '[x'"


def test_a_table_is_printed_in_columns() -> None:
    assert plain(TABLE) == ["name   n", "b      2", "a     10", "c      ?", "D d   2?"]
    assert plain(TABLE.containing("x")) == ["(nothing here matches 'x')"]
