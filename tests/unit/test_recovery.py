"""Recovery times from recorded histories, and what cannot be told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.testing.history import Entry, What
from mesh.testing.recovery import WINDOW_S, middle, recoveries, strikes, throughput_s


def steady(since: float, until: float, rate: float = 10.0) -> list[float]:
    return [since + number / rate for number in range(round((until - since) * rate))]


def struck(began: float, ended: float | None, number: str = "1") -> list[Entry]:
    found = [Entry(What.FAULT, detail="freeze-peer", peer="7", value=number, at=began)]
    return found if ended is None else [*found, Entry(What.HEALED, detail="freeze-peer", value=number, at=ended)]


def task(name: str, confirmed: float, answered: float | None) -> list[Entry]:
    found = [Entry(What.CONFIRMED, task=name, at=confirmed)]
    return found if answered is None else [*found, Entry(What.ANSWERED, task=name, at=answered)]


def test_a_rate_that_never_fell_is_back_at_once() -> None:
    assert throughput_s(steady(0, 20), began=10, ended=12) == 0


def test_a_gap_after_the_end_is_counted_from_the_end() -> None:
    times = steady(0, 10) + steady(15, 20)

    assert throughput_s(times, began=10, ended=12) == pytest.approx(3 - (1 - 0.8) * WINDOW_S, abs=0.11)


def test_a_rate_that_comes_back_by_half_is_not_back() -> None:
    assert throughput_s(steady(0, 10) + steady(10, 30, rate=5), began=10, ended=10) is None


def test_without_enough_answers_before_there_is_nothing_to_come_back_to() -> None:
    assert throughput_s([9.0, 9.5, 11.0], began=10, ended=10) is None
    assert throughput_s([], began=10, ended=10) is None


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(0, 100), st.floats(0, 10))
def test_a_time_is_within_the_history_or_none(times: list[float], began: float, length: float) -> None:
    found = throughput_s(sorted(times), began=began, ended=began + length)

    assert found is None or 0 <= found <= 100


def test_what_was_in_flight_is_over_with_its_last_answer() -> None:
    entries = [*task("a", 1, 2), *task("b", 3, 9), *task("c", 4, 12), *struck(5, 7), *task("late", 6, 30)]

    (found,) = recoveries(entries)

    assert (found.in_flight, found.in_flight_s) == (2, 5)


def test_what_was_answered_before_the_end_took_no_time() -> None:
    (found,) = recoveries([*task("a", 1, 6), *struck(5, 7)])

    assert (found.in_flight, found.in_flight_s) == (1, 0)


def test_a_task_that_is_never_answered_is_told_as_never() -> None:
    (found,) = recoveries([*task("a", 1, None), *struck(5, 7)])

    assert (found.in_flight, found.in_flight_s) == (1, None)


def test_a_strike_that_goes_on_has_no_times_yet() -> None:
    (found,) = recoveries([*task("a", 1, 2), *struck(5, None)])

    assert (found.strike.ended, found.throughput_s, found.in_flight_s) == (None, None, None)


def test_strikes_are_told_apart_by_number_and_points_to_die_at_are_none() -> None:
    entries = [*struck(9, 10, "2"), Entry(What.FAULT, detail="committed", at=1.0), *struck(5, 7, "1")]

    assert [(strike.number, strike.began, strike.ended) for strike in strikes(entries)] == [(1, 5, 7), (2, 9, 10)]


def test_the_middle_is_the_lower_one_of_two() -> None:
    assert (middle([]), middle([3.0]), middle([1.0, 2.0])) == (None, 3.0, 1.0)
