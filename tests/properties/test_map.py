"""The map of any mesh: no call is lost, no drawing fails or hangs, and a part is a part."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.card import AgentCard, Beat, Calls, CapabilityCard, Described, PeerState
from mesh.cli.map import draw
from mesh.cli.map.model import EdgeKind, drawn

names = st.sampled_from(["a", "b", "c", "d"])
people = st.sampled_from(["", "web", 'say "hi"', "x|y", "line\nend", "(others)"])
calls = st.builds(
    Calls,
    capability=names,
    caller=st.one_of(st.just(""), names),
    agent=people,
    version=st.sampled_from(["", "1", "2"]),
    count=st.integers(1, 10**9),
    last_at=st.floats(0, 2e9),
)
capabilities = st.builds(
    CapabilityCard,
    name=names,
    input_schema=st.sampled_from([{}, {"type": "string"}]),
    next_rung=st.one_of(st.just(""), names),
    threshold=st.floats(0, 1),
    verified_by=st.lists(names, max_size=3).map(tuple),
)
agents = st.builds(
    AgentCard,
    name=people,
    version=st.sampled_from(["", "1", "2"]),
    owner=st.sampled_from(["", "care", "sales"]),
    capabilities=st.lists(capabilities, max_size=3).map(tuple),
)
peers = st.builds(
    Described,
    beat=st.builds(Beat, peer=st.sampled_from(["p1", "p2"]), at=st.just(0.0), state=st.just(PeerState.READY)),
    cards=st.lists(agents, max_size=3).map(tuple),
    calls=st.lists(calls, max_size=6).map(tuple),
)
queues = st.dictionaries(names, st.integers(0, 10**6))


@given(st.lists(peers, max_size=4), queues)
def test_every_call_stands_in_one_edge_and_every_drawing_ends(found: list[Described], waiting: dict[str, int]) -> None:
    whole = drawn(found, waiting)

    edges = [edge for edge in whole.edges if edge.kind is EdgeKind.CALLS]
    assert sum(edge.count for edge in edges) == sum(one.count for peer in found for one in peer.calls)
    assert len({(edge.source, edge.is_client, edge.target) for edge in edges}) == len(edges)
    for drawing in (draw.text(whole, 0.0), draw.mermaid(whole), draw.dot(whole)):
        assert all("\n" not in line for line in drawing)


@given(st.lists(peers, max_size=4), queues, names, st.sampled_from(["", "care", "nobody"]))
def test_a_part_of_a_map_is_in_the_whole_and_can_be_drawn(
    found: list[Described], waiting: dict[str, int], capability: str, owner: str
) -> None:
    whole = drawn(found, waiting)

    for part in (whole.only(capability=capability), whole.only(owner=owner)):
        assert set(part.services) <= set(whole.services)
        assert set(part.edges) <= set(whole.edges)
        assert set(part.unserved) <= set(whole.unserved)
        for drawing in (draw.text(part, 0.0), draw.mermaid(part), draw.dot(part)):
            assert all("\n" not in line for line in drawing)
    assert all(capability == service.capability for service in whole.only(capability=capability).services)
