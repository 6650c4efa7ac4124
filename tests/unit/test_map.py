"""The map of a mesh: what live peers say comes to owners, callers, versions, and what does not fit together."""

import json
from typing import Any

import pytest

from contracts.card import AgentCard, Beat, Calls, CapabilityCard, Described, PeerState
from mesh.cli.map import draw
from mesh.cli.map.model import Edge, EdgeKind, Map, drawn

NOW = 1_000.0


def capability(name: str, *, takes: str = "string", **more: Any) -> CapabilityCard:
    return CapabilityCard(name=name, input_schema={"type": takes}, output_schema={"type": "string"}, **more)


def peer(name: str, *cards: AgentCard, calls: tuple[Calls, ...] = ()) -> Described:
    return Described(beat=Beat(peer=name, at=NOW, state=PeerState.READY), cards=cards, calls=calls)


def agent(name: str, *capabilities: CapabilityCard, version: str = "1", owner: str = "care") -> AgentCard:
    return AgentCard(name=name, version=version, owner=owner, capabilities=capabilities)


def lines(found: Map) -> str:
    return "\n".join(draw.text(found, NOW))


DESK = agent("desk", capability("triage"))
STOCK = agent("stock", capability("lookup"), owner="sales")


def test_counts_of_all_peers_come_together() -> None:
    asked = Calls(capability="lookup", caller="triage", agent="desk", version="1", count=3, last_at=NOW - 9)
    later = Calls(capability="lookup", caller="triage", agent="desk", version="1", count=4, last_at=NOW - 2)
    web = Calls(capability="triage", agent="web", count=5, last_at=NOW - 60)

    found = drawn([peer("a", DESK, STOCK, calls=(asked, web)), peer("b", STOCK, calls=(later,))], {})

    assert found.edges == (
        Edge(EdgeKind.CALLS, "triage", "lookup", count=7, last_at=NOW - 2, by=("desk 1",)),
        Edge(EdgeKind.CALLS, "web", "triage", is_client=True, count=5, last_at=NOW - 60),
    )
    assert found.notes == ()
    assert "asked by      triage 7 (last 2 s ago)" in lines(found)
    assert "asked by      client web 5 (last 60 s ago)" in lines(found)
    assert "asks          lookup 7" in lines(found)


def test_two_contracts_of_one_capability_are_a_note_and_two_words_for_one_are_none() -> None:
    same = capability("triage", description="Other words.")
    other = capability("triage", takes="integer")

    quiet = drawn([peer("a", DESK), peer("b", agent("desk", same))], {})
    loud = drawn([peer("a", DESK), peer("b", agent("desk", other, version="2"))], {})

    assert quiet.notes == ()
    (note,) = loud.notes
    assert note.startswith("triage is served under 2 contracts: desk 1, contract ")
    assert note.endswith(" on b: a rollout in progress, or a mistake")


def test_versions_agents_and_owners_that_differ_are_notes() -> None:
    versions = drawn([peer("a", DESK), peer("b", agent("desk", capability("triage"), version="2"))], {})
    agents = drawn([peer("a", DESK), peer("b", agent("help", capability("triage"), owner="sales"))], {})
    nobody = drawn([peer("a", agent("desk", capability("triage"), owner=""))], {})

    assert "2 versions" in versions.notes[0]
    assert "2 agents" in agents.notes[0]
    assert agents.notes[1] == "triage has 2 owners: care, sales"
    assert nobody.notes == ("triage has no owner: name one with Agent(..., owner=)",)
    assert lines(nobody).startswith("(no owner)")


def test_a_caller_that_no_live_peer_runs_is_a_note() -> None:
    old = Calls(capability="lookup", caller="triage", agent="desk", version="0", count=1, last_at=NOW)

    found = drawn([peer("a", DESK, STOCK, calls=(old,))], {})

    (note,) = found.notes
    assert note.startswith("lookup was asked by desk 0 (triage), which no live peer runs")


def test_a_queue_without_peers_is_shown_with_what_waits() -> None:
    found = drawn([peer("a", DESK)], {"lookup": 12, "triage": 3})

    assert [(one.capability, one.waiting) for one in found.unserved] == [("lookup", 12)]
    assert found.notes == ("lookup has a queue, and 12 tasks waiting there, and no live peer serves it",)


def test_ladders_and_verifiers_are_edges_and_missing_ones_notes() -> None:
    card = capability("triage", next_rung="human", threshold=0.8, verified_by=("check", "check"))

    found = drawn([peer("a", agent("desk", card))], {})

    assert "escalates to  human, answers less sure than 0.8" in lines(found)
    assert "verified by   check, 2 votes" in lines(found)
    assert set(found.notes) == {
        "triage escalates to human, which no live peer serves",
        "triage is verified by check, which no live peer serves",
    }


def test_cycles_end() -> None:
    around = tuple(
        Calls(capability=target, caller=source, agent="desk", version="1", count=1, last_at=NOW)
        for source, target in (("a", "b"), ("b", "c"), ("c", "a"), ("a", "a"))
    )
    found = drawn([peer("p", agent("desk", *map(capability, "abc")), calls=around)], {})

    for drawing in (draw.text(found, NOW), draw.mermaid(found), draw.dot(found)):
        assert len(list(drawing)) < 40
    assert json.dumps(draw.document(found))


def test_one_capability_or_one_owner_brings_its_edges_along() -> None:
    asked = Calls(capability="lookup", caller="triage", agent="desk", version="1", count=3, last_at=NOW)
    web = Calls(capability="triage", agent="web", count=5, last_at=NOW)
    found = drawn([peer("a", DESK, STOCK, calls=(asked, web))], {"ghost": 1})

    lookup, care = found.only(capability="lookup"), found.only(owner="care")

    assert [service.capability for service in lookup.services] == ["lookup"]
    assert [edge.source for edge in lookup.edges] == ["triage"]
    assert lookup.notes == lookup.unserved == ()
    assert [service.capability for service in care.services] == ["triage"]
    assert [edge.target for edge in care.edges] == ["lookup", "triage"]
    assert found.only(capability="ghost").unserved[0].waiting == 1
    assert found.only(capability="nothing").services == ()


@pytest.mark.parametrize("name", ['say "hi"', "a|b]", "x\\", "line\nbreak", "<b>", "é ü"])
def test_names_of_clients_cannot_break_a_drawing(name: str) -> None:
    web = Calls(capability="triage", agent=name, count=1, last_at=NOW)
    found = drawn([peer("a", DESK, calls=(web,))], {})

    mermaid, dot = list(draw.mermaid(found)), list(draw.dot(found))

    (node,) = [line for line in mermaid if "([" in line]
    assert node.count('"') == 2
    assert not set("|<>\\\n") & set(node)
    (oval,) = [line for line in dot if "shape=oval" in line]
    assert "\n" not in oval
    assert oval.replace("\\\\", "").replace('\\"', "").count('"') == 2
