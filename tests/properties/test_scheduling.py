"""Bids and offers: bounded, monotone, and never a free slot that stays unoffered."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mesh.scheduling.bids import LEVELS, OUTLIER_RATIO, ServiceTime, bid, expected_delay_s
from mesh.scheduling.credit import slots_to_offer

seconds = st.floats(0, 1e7, allow_nan=False)
runs = st.floats(1e-6, 1e5, allow_nan=False)


@given(seconds)
def test_a_bid_is_a_priority_that_the_server_knows(delay_s: float) -> None:
    assert bid(delay_s) in range(LEVELS)


@given(seconds, seconds)
def test_a_longer_delay_never_bids_better(one_s: float, other_s: float) -> None:
    assert bid(min(one_s, other_s)) <= bid(max(one_s, other_s))


@given(st.floats(0.004, 5))
def test_a_peer_ten_times_slower_bids_two_levels_worse(delay_s: float) -> None:
    assert bid(10 * delay_s) - bid(delay_s) in (2, 3)


def test_a_peer_that_knows_nothing_yet_bids_best() -> None:
    assert bid(expected_delay_s(ServiceTime(), in_flight=0, slots=4)) == 0


@given(runs, st.integers(0, 100), st.integers(1, 100))
def test_a_busier_peer_expects_a_longer_delay(mean_s: float, in_flight: int, slots: int) -> None:
    service = ServiceTime(mean_s)

    delay_s = expected_delay_s(service, in_flight, slots)

    assert delay_s >= mean_s
    assert expected_delay_s(service, in_flight + 1, slots) > delay_s


@given(st.lists(runs, min_size=1, max_size=30))
def test_the_average_lies_between_the_shortest_and_the_longest_run(observed: list[float]) -> None:
    service = ServiceTime()

    for run_s in observed:
        service = service.after(run_s)

    assert min(observed) * (1 - 1e-9) <= service.mean_s <= max(observed) * (1 + 1e-9)


@given(runs, st.integers(1, 200))
def test_the_average_settles_where_runs_settle(run_s: float, before: int) -> None:
    service = ServiceTime(run_s * before)

    for _ in range(100):
        service = service.after(run_s)

    assert math.isclose(service.mean_s, run_s, rel_tol=1e-3)


@given(runs, runs)
def test_one_outlier_moves_the_average_by_a_bounded_factor(mean_s: float, run_s: float) -> None:
    after = ServiceTime(mean_s).after(run_s)

    assert after.mean_s <= mean_s * (1 + 0.2 * (OUTLIER_RATIO - 1)) * (1 + 1e-9)


@given(st.integers(1, 500), st.data())
def test_no_more_slots_are_offered_than_are_free(slots: int, data: st.DataObject) -> None:
    in_flight = data.draw(st.integers(0, slots + 5))
    offered = data.draw(st.integers(0, slots))

    more = slots_to_offer(slots, in_flight, offered)

    assert 0 <= more <= max(0, slots - in_flight - offered)


@given(st.integers(1, 500), st.data())
def test_a_free_slot_is_offered_when_nothing_else_is(slots: int, data: st.DataObject) -> None:
    in_flight = data.draw(st.integers(0, slots - 1))

    assert slots_to_offer(slots, in_flight, 0) == slots - in_flight


@given(st.integers(1, 500), st.data())
def test_slots_are_collected_to_half_of_all_before_another_pull(slots: int, data: st.DataObject) -> None:
    in_flight = data.draw(st.integers(0, slots))
    offered = data.draw(st.integers(1, slots))

    more = slots_to_offer(slots, in_flight, offered)

    assert more == 0 or 2 * more >= slots


@given(st.integers(1, 500), st.data())
def test_once_all_are_free_again_and_on_offer_there_is_nothing_to_add(slots: int, data: st.DataObject) -> None:
    in_flight = data.draw(st.integers(0, slots))

    assert slots_to_offer(slots, in_flight, slots - in_flight) == 0
