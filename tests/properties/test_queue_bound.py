"""A client stops at the bound of a queue, asks rarely how full it is, and says when to come back."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.queue_bound import (
    MEASURED_S_MIN,
    REFRESH_FULL_S,
    REFRESH_NEAR_S,
    REFRESH_S,
    RETRY_S_MAX,
    RETRY_S_MIN,
    STANDS_STILL_S,
    UNKNOWN_RETRY_S,
    Look,
    QueueCredit,
)

counts = st.integers(0, 10**6)
times = st.floats(0, 1e6)
looks = st.builds(Look, counts, st.integers(1, 10**6), counts, times)


@given(looks, counts)
def test_no_more_are_admitted_than_the_bound_leaves_room_for(look: Look, added: int) -> None:
    credit = QueueCredit.first(look)

    assert credit.admits(added) == (look.depth + added < look.bound)


@given(looks, counts)
def test_a_queue_without_a_bound_takes_everything(look: Look, added: int) -> None:
    assert QueueCredit.first(replace(look, bound=0)).admits(added)


@given(looks, counts)
def test_a_look_lasts_no_longer_than_two_seconds_and_less_near_the_bound(look: Look, added: int) -> None:
    credit = QueueCredit.first(look)

    assert credit.is_stale(added, now=look.at + REFRESH_S + 1e-3)
    if look.depth + added >= 0.8 * look.bound:
        assert credit.is_stale(added, now=look.at + REFRESH_NEAR_S + 1e-3)


@given(looks, counts)
def test_a_look_that_found_it_full_lasts_a_little_for_everyone(look: Look, added: int) -> None:
    full = replace(look, depth=look.depth + look.bound)

    assert not QueueCredit.first(full).is_stale(added, now=look.at + 0.9 * REFRESH_FULL_S)
    assert QueueCredit.first(full).is_stale(added, now=look.at + 1.1 * REFRESH_FULL_S)


@given(looks)
def test_a_queue_that_this_client_has_filled_since_is_looked_at_at_once(look: Look) -> None:
    roomy = replace(look, depth=0)

    assert QueueCredit.first(roomy).is_stale(look.bound, now=look.at)


@given(st.integers(4, 10**6), times, st.data())
def test_far_from_the_bound_nothing_is_asked_for_two_seconds(bound: int, at: float, data: st.DataObject) -> None:
    depth = data.draw(st.integers(0, bound // 4))
    added = data.draw(st.integers(0, max(0, (bound - depth - 1) // 2 - 1)))
    credit = QueueCredit.first(Look(depth, bound, 0, at))

    if depth + added < 0.8 * bound:
        assert not credit.is_stale(added, now=at + 0.9 * REFRESH_S)


@given(looks, counts)
def test_without_a_second_look_a_client_comes_back_in_a_second(look: Look, added: int) -> None:
    assert QueueCredit.first(look).retry_after_s(added) == UNKNOWN_RETRY_S


@given(looks, st.lists(st.tuples(st.floats(0, 10), counts, st.integers(0, 10**5)), max_size=10), counts)
def test_the_time_to_come_back_is_bounded_whatever_is_seen(
    look: Look, later: list[tuple[float, int, int]], added: int
) -> None:
    credit = QueueCredit.first(look)
    for passed_s, depth, handed_out in later:
        seen = credit.look
        credit = credit.after(Look(depth, look.bound, seen.handed_out + handed_out, seen.at + passed_s))

    assert RETRY_S_MIN <= credit.retry_after_s(added) <= RETRY_S_MAX


@given(looks, st.integers(1, 10**5), st.floats(MEASURED_S_MIN + 0.01, 60))
def test_a_client_comes_back_when_so_many_have_left_as_are_too_many(
    look: Look, handed_out: int, passed_s: float
) -> None:
    full = replace(look, depth=look.bound, at=0.0)
    credit = QueueCredit.first(full).after(replace(full, handed_out=full.handed_out + handed_out, at=passed_s))
    room = max(1, look.bound // 100)

    expected = room * passed_s / handed_out

    assert abs(credit.retry_after_s(0) - min(max(expected, RETRY_S_MIN), RETRY_S_MAX)) < 1e-6


@given(looks)
def test_a_queue_that_does_not_move_is_asked_for_seldom(look: Look) -> None:
    full = replace(look, depth=look.bound, at=0.0)

    assert QueueCredit.first(full).after(replace(full, at=STANDS_STILL_S)).retry_after_s(0) == RETRY_S_MAX


@given(looks, st.floats(MEASURED_S_MIN, STANDS_STILL_S, exclude_max=True))
def test_a_moment_without_a_task_handed_out_is_no_measure(look: Look, passed_s: float) -> None:
    full = replace(look, depth=look.bound, at=0.0)

    assert QueueCredit.first(full).after(replace(full, at=passed_s)).retry_after_s(0) == UNKNOWN_RETRY_S


@given(looks, st.floats(0, MEASURED_S_MIN / 2), st.floats(MEASURED_S_MIN, 10))
def test_looks_in_quick_succession_do_not_spoil_the_measure(look: Look, soon_s: float, later_s: float) -> None:
    start = replace(look, at=0.0)
    soon = replace(start, at=soon_s, handed_out=start.handed_out + 3)
    later = replace(start, at=later_s, handed_out=start.handed_out + 10)

    credit = QueueCredit.first(start).after(soon).after(later)

    assert credit.drain_per_s == 10 / later_s


@given(looks)
def test_a_consumer_that_was_made_anew_is_measured_anew(look: Look) -> None:
    before = replace(look, handed_out=look.handed_out + 1, at=0.0)
    credit = QueueCredit.first(before).after(replace(before, handed_out=before.handed_out + 5, at=1.0))

    anew = credit.after(replace(before, handed_out=0, at=2.0))

    assert anew.drain_per_s is None
    assert anew.retry_after_s(0) == UNKNOWN_RETRY_S


@given(looks, counts, st.floats(0, REFRESH_S - 1e-3))
def test_where_there_is_nothing_to_reckon_a_task_is_admitted_without_a_look(
    look: Look, added: int, passed_s: float
) -> None:
    credit = QueueCredit.first(replace(look, at=0.0))

    if added < credit.roomy_below:
        assert credit.admits(added)
        assert not credit.is_stale(added, now=passed_s)
