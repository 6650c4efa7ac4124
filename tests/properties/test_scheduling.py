"""Bids, averages and offers: bounded, monotone, and never a free slot that stays unoffered."""

import math
import random

from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.scheduling.bids import ALIKE, BEST, BID_MAX, HANDOVER_S, Offer, bid, delay_s, is_at_pace, probe_after_s
from mesh.scheduling.credit import SHORT_S, Ask, ahead, asks, slots_to_offer
from mesh.scheduling.service import CLASSES_MAX, FAR, OTHERS, SLOW_AFTER, WEIGHT, ServiceTime, ServiceTimes

seconds = st.floats(0, 1e5, allow_nan=False)
runs = st.floats(1e-6, 1e5, allow_nan=False)
offers = st.builds(Offer, st.integers(1, 1_000), seconds)
fleets = st.lists(offers, max_size=20)


# Bids.


@given(offers, fleets)
def test_a_bid_is_a_depth_that_a_queue_can_have(own: Offer, others: list[Offer]) -> None:
    assert BEST <= bid(own, others) <= BID_MAX


@given(offers, fleets)
def test_a_peer_that_no_other_is_clearly_faster_than_takes_whatever_comes(own: Offer, others: list[Offer]) -> None:
    assume(
        all(not other.delay_s or ALIKE * (other.delay_s + HANDOVER_S) >= own.delay_s + HANDOVER_S for other in others)
    )

    assert bid(own, others) == BEST


@given(fleets)
def test_somebody_in_every_fleet_takes_whatever_comes(fleet: list[Offer]) -> None:
    bids = [bid(own, [other for other in fleet if other is not own]) for own in fleet]

    assert not fleet or min(bids) == BEST


@given(st.integers(1, 100), seconds, seconds, fleets)
def test_a_slower_peer_never_bids_better(slots: int, one_s: float, other_s: float, fleet: list[Offer]) -> None:
    faster, slower = sorted((one_s, other_s))

    assert bid(Offer(slots, faster), fleet) <= bid(Offer(slots, slower), fleet)


@given(offers, fleets, st.integers(1, 100))
def test_more_slots_of_faster_peers_never_make_a_slow_one_bid_better(own: Offer, fleet: list[Offer], more: int) -> None:
    fast = Offer(more, own.delay_s / 100)

    assert bid(own, [*fleet, fast]) >= bid(own, fleet) or any(other.delay_s > fast.delay_s for other in fleet)


def test_a_peer_ten_times_slower_than_six_bids_so_deep_that_it_helps_only_under_load() -> None:
    fast = [Offer(1, 0.02)] * 6

    assert bid(Offer(1, 0.2), fast) == 13
    assert bid(Offer(1, 0.2), fast[:1]) == 3
    assert bid(Offer(8, 20.0), [Offer(8, 2.0)] * 6) == 108


def test_a_run_at_the_pace_of_faster_peers_is_known_by_them() -> None:
    fast, slow = [Offer(1, 0.02)] * 6, Offer(1, 0.2)

    assert is_at_pace(0.03, slow, fast)
    assert not is_at_pace(0.1, slow, fast)
    assert not is_at_pace(0.03, Offer(1, 0.03), fast)
    assert not is_at_pace(0.03, slow, [])


def test_differences_that_handing_over_costs_anyway_do_not_count() -> None:
    assert bid(Offer(1, 0.001), [Offer(1, 0.0001)] * 100) == BEST


def test_a_peer_that_was_handed_the_large_ones_is_not_taken_for_a_slow_one() -> None:
    large = Offer(1, 1.0, {"large": 1.0})
    mixed = Offer(1, 0.1, {"large": 1.0, "small": 0.01})

    assert bid(large, [mixed] * 6) == BEST
    assert bid(Offer(1, 1.0), [mixed] * 6) > BEST
    assert bid(Offer(1, 10.0, {"large": 10.0}), [mixed] * 6) > BEST


@given(seconds, st.integers(1, 100), st.integers(0, 1_000), st.floats(0, 10))
def test_tasks_in_line_and_a_late_loop_make_the_delay_longer(
    mean_s: float, slots: int, standing: int, lag_s: float
) -> None:
    alone = delay_s(mean_s, slots=slots)

    assert alone == mean_s
    assert delay_s(mean_s, slots=slots, standing=standing, lag_s=lag_s) >= alone + lag_s


@given(seconds)
def test_a_probe_costs_a_small_share_of_the_peers_time(own_s: float) -> None:
    assert probe_after_s(own_s) >= max(2.0, 5 * own_s)


# Averages.


def averaged(observed: list[float]) -> ServiceTime:
    service = ServiceTime()
    for run_s in observed:
        service = service.after(run_s)
    return service


@given(st.lists(runs, min_size=1, max_size=30))
def test_the_average_lies_between_the_shortest_and_the_longest_run(observed: list[float]) -> None:
    assert min(observed) * (1 - 1e-9) <= averaged(observed).mean_s <= max(observed) * (1 + 1e-9)


@given(runs, runs)
def test_the_average_settles_where_runs_settle(before_s: float, run_s: float) -> None:
    settled = averaged([before_s] * 20 + [run_s] * 150)

    assert math.isclose(settled.mean_s, run_s, rel_tol=0.01)


@given(st.floats(1e-3, 10), runs)
def test_one_outlier_moves_the_average_by_a_bounded_factor(mean_s: float, run_s: float) -> None:
    settled = averaged([mean_s] * 20)

    assert settled.after(run_s).mean_s <= mean_s * (1 + WEIGHT * (FAR - 1)) * (1 + 1e-9)


def test_a_peer_that_turns_ten_times_slower_is_known_after_three_runs_and_one_that_recovers_after_ten() -> None:
    slow = averaged([0.02] * 50 + [0.2] * (SLOW_AFTER + 1))
    assert slow.mean_s > 0.1

    for _ in range(10):
        slow = slow.after(0.02)
    assert slow.mean_s < ALIKE * 0.02


def test_runs_at_the_pace_of_others_bring_a_peer_back_after_four() -> None:
    services = ServiceTimes()
    for _ in range(50):
        services.observe(0.2)
    for _ in range(4):
        services.observe(0.02, is_sign=True)

    assert services.every.mean_s < ALIKE * 0.02


def test_stragglers_now_and_then_seldom_make_a_peer_look_slow() -> None:
    def average(seed: int) -> float:
        dice = random.Random(seed)
        straggling = (10 if dice.random() < 0.01 else 1 for _ in range(200))
        return averaged([dice.expovariate(50) * ratio for ratio in straggling]).mean_s

    slow = [seed for seed in range(1_000) if average(seed) > ALIKE * 0.02 * 1.09]

    assert len(slow) < 10


@given(st.lists(st.tuples(runs, st.text(max_size=3)), max_size=60))
def test_classes_are_averaged_apart_and_bounded(observed: list[tuple[float, str]]) -> None:
    services = ServiceTimes()
    for run_s, class_ in observed:
        services.observe(run_s, class_)

    means = services.means_s()
    assert len(means) <= CLASSES_MAX + 1
    assert "" not in means
    assert services.every.seen == len(observed)
    if len({class_ for _, class_ in observed} - {""}) > CLASSES_MAX:
        assert OTHERS in means


# Offers.


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


@given(st.integers(-3, 500), st.integers(1, 1_000), st.booleans())
def test_pulls_ask_for_every_free_slot_once_and_probe_with_at_most_one(free: int, own: int, probes: bool) -> None:
    pulls = asks(free, own, probes=probes)

    assert sum(pull.slots for pull in pulls) == max(0, free)
    assert all(pull.slots > 0 for pull in pulls)
    at_once = [pull for pull in pulls if pull.bid == BEST]
    if own > BEST:
        assert at_once == ([Ask(1)] if probes and free > 0 else [])


@given(st.integers(1, 1_000), st.floats(0, 10), st.integers(0, 10_000))
def test_short_tasks_alone_are_fetched_ahead_and_only_from_a_deep_queue(slots: int, mean_s: float, fleet: int) -> None:
    ask = ahead(slots, mean_s, fleet)

    assert (ask is not None) == (0 < mean_s <= SHORT_S)
    if ask is not None:
        assert 1 <= ask.slots <= slots
        assert ask.bid >= 4 * max(slots, fleet)
