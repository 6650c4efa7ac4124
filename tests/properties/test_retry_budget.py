"""A peer makes no more retries than its budget allows, delays the others, and drops none."""

from bisect import bisect_left, bisect_right
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.budget import FLOOR_PER_S, WINDOW_S, RetryBudget

gaps = st.floats(0, 2.0)
traffic = st.lists(st.tuples(gaps, st.booleans()), max_size=300)
shares = st.floats(0, 2)
starts = st.floats(0, 1e6)


def run(
    budget: RetryBudget, events: list[tuple[float, bool]], start: float
) -> tuple[list[float], list[tuple[float, float]]]:
    """When first attempts came; when each retry was asked for, and when it has its turn."""
    firsts: list[float] = []
    retries: list[tuple[float, float]] = []
    now = start
    for gap, is_retry in events:
        now += gap
        if is_retry:
            retries.append((now, now + budget.take(now)))
        else:
            budget.attempted(now)
            firsts.append(now)
    return firsts, retries


@given(traffic, shares, starts)
def test_retries_that_are_not_delayed_are_within_the_budget(
    events: list[tuple[float, bool]], share: float, start: float
) -> None:
    firsts, retries = run(RetryBudget(share), events, start)
    at_once = [asked for asked, turn in retries if turn == asked]

    for number, now in enumerate(at_once, 1):
        come_in = FLOOR_PER_S * (now - start + WINDOW_S) + share * bisect_right(firsts, now)
        assert number <= come_in + 1e-6


@given(traffic, shares, starts)
def test_in_any_time_no_more_than_twice_as_many_have_their_turn_as_the_traffic_allows(
    events: list[tuple[float, bool]], share: float, start: float
) -> None:
    firsts, retries = run(RetryBudget(share), events, start)
    turns = sorted(turn for _, turn in retries)
    # The budget knows when first attempts came to within a second.
    most = max((bisect_right(firsts, at) - bisect_left(firsts, at - WINDOW_S - 1) for at in firsts), default=0)
    rate = FLOOR_PER_S + share * most / WINDOW_S

    for number, turn in enumerate(turns):
        for before in (10, 50, 200):
            since = max(0, number - before)
            assert number - since <= 2 * rate * (turn - turns[since] + WINDOW_S) + 1


@given(st.integers(1, 400), shares, st.integers(0, 500), starts)
def test_retries_that_are_delayed_do_not_come_at_once(retries: int, share: float, firsts: int, start: float) -> None:
    budget = RetryBudget(share)
    for _ in range(firsts):
        budget.attempted(start)
    rate = budget.rate_per_s(start)

    delays = [budget.take(start) for _ in range(retries)]

    assert sum(delay == 0 for delay in delays) <= rate * WINDOW_S + 1e-6
    late = [delay for delay in delays if delay > 0]
    assert all(abs(later - earlier - 1 / rate) < 1e-6 for earlier, later in pairwise(late))


@given(shares, st.integers(0, 300), starts)
def test_an_unused_budget_lets_the_share_through_at_once(share: float, firsts: int, start: float) -> None:
    budget = RetryBudget(share)
    for _ in range(firsts):
        budget.attempted(start)
    allowed = int(FLOOR_PER_S * WINDOW_S + share * firsts)

    delays = [budget.take(start) for _ in range(allowed)]

    assert max(delays) < 1e-3


@given(shares, st.integers(0, 300), st.integers(0, 300), starts)
def test_deposits_expire(share: float, firsts: int, retries: int, start: float) -> None:
    budget = RetryBudget(share)
    for _ in range(firsts):
        budget.attempted(start)
    later = start + WINDOW_S + 1

    assert budget.rate_per_s(later) == FLOOR_PER_S
    assert sum(budget.take(later) < 1e-6 for _ in range(retries)) <= FLOOR_PER_S * WINDOW_S


@given(traffic, shares, starts)
def test_once_all_turns_have_passed_nothing_is_owed(
    events: list[tuple[float, bool]], share: float, start: float
) -> None:
    budget = RetryBudget(share)
    _, retries = run(budget, events, start)
    later = max((turn for _, turn in retries), default=start) + sum(gap for gap, _ in events) + 1 / FLOOR_PER_S

    assert budget.take(later + 1e-3) == 0.0


@given(st.integers(1, 10_000))
def test_no_retry_waits_for_ever(retries: int) -> None:
    budget = RetryBudget(0.0)

    delays = [budget.take(0.0) for _ in range(retries)]

    assert delays[-1] <= retries / FLOOR_PER_S
