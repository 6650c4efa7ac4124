"""Whose turn it is to answer a cancelled task."""

from contracts.subjects import Identity
from mesh.runtime.cancelled import turn


def test_peers_that_hear_the_same_agree_on_an_order() -> None:
    peers = [f"peer-{number}" for number in range(7)]

    for key in range(50):
        task = Identity("triage", f"k{key}")

        assert sorted(turn(reversed(peers), peer, task) for peer in peers) == list(range(7))


def test_the_first_turn_is_spread_over_the_peers() -> None:
    peers = [f"peer-{number}" for number in range(4)]

    first = [sum(turn(peers, peer, Identity("triage", f"k{key}")) == 0 for key in range(400)) for peer in peers]

    assert min(first) > 50


def test_a_peer_that_hears_nobody_goes_first() -> None:
    assert turn([], "alone", Identity("triage", "k")) == 0
