"""Seats are shared evenly and never given twice, as long as everybody goes by the same record."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.limit import Holding
from mesh.resilience.seats import alive, allotted

HOLDINGS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.builds(
        Holding,
        seats=st.integers(0, 5),
        wants=st.integers(0, 5),
        since=st.sampled_from([0.0, 1.0, 2.0]),
        until=st.sampled_from([5.0, 10.0]),
    ),
    min_size=1,
)
COUNTS = st.integers(1, 30)


@given(HOLDINGS, COUNTS)
def test_all_who_take_what_is_theirs_at_once_take_no_more_than_is_free(
    holdings: dict[str, Holding], count: int
) -> None:
    free = max(0, count - sum(holding.seats for holding in holdings.values()))
    wanted = sum(holding.wants for holding in holdings.values())

    taken = {peer: allotted(holdings, peer, count) for peer in holdings}

    assert sum(taken.values()) == min(free, wanted)
    assert all(taken[peer] <= holding.wants for peer, holding in holdings.items())


@given(HOLDINGS, COUNTS)
def test_nobody_takes_a_seat_while_another_who_wants_one_holds_fewer(holdings: dict[str, Holding], count: int) -> None:
    taken = {peer: allotted(holdings, peer, count) for peer in holdings}

    still_want = [holding.seats + taken[peer] for peer, holding in holdings.items() if holding.wants > taken[peer]]
    for peer, holding in holdings.items():
        if taken[peer]:
            assert all(holding.seats + taken[peer] <= other + 1 for other in still_want)


@given(HOLDINGS)
def test_the_only_seat_goes_to_who_stands_in_line_longest(holdings: dict[str, Holding]) -> None:
    waiting = {peer: holding for peer, holding in holdings.items() if holding.wants and not holding.seats}
    if not waiting or any(holding.seats for holding in holdings.values()):
        return

    (winner,) = [peer for peer in waiting if allotted(waiting, peer, 1)]

    assert waiting[winner].since == min(holding.since for holding in waiting.values())


@given(HOLDINGS)
def test_what_has_lapsed_counts_no_more(holdings: dict[str, Holding]) -> None:
    assert alive(holdings, 4.9) == holdings
    assert all(holding.until > 5.0 for holding in alive(holdings, 5.0).values())
    assert alive(holdings, 10.0) == {}
