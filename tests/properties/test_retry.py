"""What counts against a task's attempts, and how long the next one waits."""

from dataclasses import replace
from enum import Enum, auto
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState
from tenacity.wait import wait_base, wait_exponential, wait_fixed

from contracts import wire
from contracts.outcome import AttemptEnded, Ended, Failure, FailureKind
from mesh.resilience.retry import (
    DEFAULT_WAIT,
    EXACT_THROTTLES,
    THROTTLED_WAIT_S_MAX,
    WAIT_S_MAX,
    Ledger,
    in_server_time,
    spent_attempts,
    spent_throttles,
    throttled_wait_s,
    wait_s,
)


class End(Enum):
    """How one attempt of a history ended."""

    FAILED = auto()
    HANDED_BACK = auto()
    THROTTLED = auto()
    CRASHED = auto()


CLEAN = (End.HANDED_BACK, End.THROTTLED)
TOLD = (End.FAILED, End.THROTTLED)
THROTTLED_S = 7.0


NOT_NOW = Failure(kind=FailureKind.TRANSIENT, message="not now", error="Throttled")
histories = st.lists(st.sampled_from(End), max_size=12)
limits = st.integers(1, 8)


def recorded(history: list[End], *, attempts: int = 3) -> Ledger:
    """The ledger that peers have written of a history, as its next delivery reads it."""
    # The first attempt begins without a record, unless it is the only one.
    began = frozenset(range(1 if attempts == 1 else 2, len(history) + 1))
    ended = tuple(
        (
            number,
            AttemptEnded(
                how=Ended.FAILED if end is End.FAILED else Ended.HANDED_BACK,
                peer="p",
                at=number,
                retry_at={End.FAILED: number + 0.5, End.THROTTLED: number + THROTTLED_S}.get(end),
                failure=Failure(kind=FailureKind.TRANSIENT, message=f"failure {number}", error="LookupError")
                if end in TOLD
                else None,
                is_throttled=end is End.THROTTLED,
            ),
        )
        for number, end in enumerate(history, 1)
        if end is not End.CRASHED
    )
    return Ledger(began, ended, is_redelivered=bool(history) and attempts > 1)


@given(histories, limits)
def test_failures_and_crashes_count_and_clean_hand_backs_never(history: list[End], attempts: int) -> None:
    ledger = recorded(history, attempts=attempts)

    assert ledger.failures == history.count(End.FAILED)
    assert ledger.crashes == history.count(End.CRASHED)
    assert ledger.used == len(history) - sum(end in CLEAN for end in history)


@given(histories, limits, st.sampled_from(CLEAN), st.data())
def test_a_clean_hand_back_anywhere_changes_no_decision(
    history: list[End], attempts: int, clean: End, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(history)))
    longer = [*history[:place], clean, *history[place:]]

    before, after = recorded(history, attempts=attempts), recorded(longer, attempts=attempts)

    assert after.used == before.used
    assert (spent_attempts(after, attempts) is None) == (spent_attempts(before, attempts) is None)


@given(st.integers(1, 100), limits)
def test_any_number_of_drains_leaves_every_attempt(drains: int, attempts: int) -> None:
    ledger = recorded([End.HANDED_BACK] * drains, attempts=attempts)

    assert ledger.used == 0
    assert spent_attempts(ledger, attempts) is None


@given(histories, limits)
def test_a_task_is_given_up_exactly_when_its_attempts_are_used_up(history: list[End], attempts: int) -> None:
    ledger = recorded(history, attempts=attempts)

    failure = spent_attempts(ledger, attempts)

    assert (failure is None) == (ledger.used < attempts)
    if failure is not None:
        assert failure.attempts == ledger.used
        assert failure.kind is (FailureKind.CRASHED if End.CRASHED in history else FailureKind.EXHAUSTED)


@given(histories, st.sampled_from([End.FAILED, End.CRASHED]), limits)
def test_one_more_failure_or_crash_uses_one_attempt(history: list[End], end: End, attempts: int) -> None:
    before, after = recorded(history, attempts=attempts), recorded([*history, end], attempts=attempts)

    assert after.used == before.used + 1


@given(histories, limits)
def test_the_next_attempt_has_a_number_of_its_own(history: list[End], attempts: int) -> None:
    ledger = recorded(history, attempts=attempts)

    assert ledger.last == len(history)
    assert ledger.is_last_open == (not history or history[-1] is End.CRASHED)


@given(histories, st.randoms(use_true_random=False))
def test_the_order_in_which_ends_are_read_does_not_matter(history: list[End], random: Random) -> None:
    ledger = recorded(history)
    shuffled = list(ledger.ended)
    random.shuffle(shuffled)

    other = replace(ledger, ended=tuple(shuffled))

    assert (other.used, other.last, other.last_failure, other.retry_at) == (
        ledger.used,
        ledger.last,
        ledger.last_failure,
        ledger.retry_at,
    )


@given(histories)
def test_the_last_failure_is_told_and_its_retry_waited_for(history: list[End]) -> None:
    ledger = recorded(history)
    told = [number for number, end in enumerate(history, 1) if end in TOLD]
    due = [number + (0.5 if history[number - 1] is End.FAILED else THROTTLED_S) for number in told]

    assert (ledger.last_failure.message if ledger.last_failure else None) == (f"failure {told[-1]}" if told else None)
    assert ledger.retry_at == max(due, default=0.0)


@given(histories, st.floats(0, 100), st.floats(0, 100))
def test_a_task_is_throttled_for_no_longer_than_its_limit(history: list[End], after_s: float, limit_s: float) -> None:
    ledger = recorded(history)
    waited_s = history.count(End.THROTTLED) * THROTTLED_S

    spent = spent_throttles(NOT_NOW, ledger, after_s, limit_s)

    assert ledger.throttled_s == waited_s
    assert (spent is None) == (waited_s + after_s <= limit_s)
    if spent is not None:
        assert spent.kind is FailureKind.EXHAUSTED
        assert spent.message.startswith(
            f"not now; throttled {ledger.throttles + 1} times, it has waited {waited_s:.1f} s"
        )


@given(st.floats(0, 1e5), st.integers(1, 10_000), st.floats(0, 1))
def test_a_throttled_task_waits_as_long_as_it_was_told_and_little_longer(
    told_s: float, throttles: int, dice: float
) -> None:
    waits_s = throttled_wait_s(told_s, throttles, dice=dice)

    assert waits_s >= told_s
    if throttles <= EXACT_THROTTLES:
        assert waits_s <= told_s + max(0.1, min(0.1 * told_s, 30.0))


@given(st.floats(0, 60), st.floats(1, 1e4))
def test_a_callee_that_keeps_telling_short_waits_is_asked_ever_more_seldom(told_s: float, limit_s: float) -> None:
    waited_s, throttles = 0.0, 0
    while waited_s <= limit_s:
        throttles += 1
        waited_s += throttled_wait_s(told_s, throttles, dice=0.0)

    assert throttles <= EXACT_THROTTLES + 8 + limit_s / THROTTLED_WAIT_S_MAX


def test_an_older_reader_takes_a_throttled_attempt_for_a_clean_hand_back() -> None:
    end = AttemptEnded(how=Ended.HANDED_BACK, peer="p", at=1.0, retry_at=9.0, failure=NOT_NOW, is_throttled=True)

    known = msgspec.json.decode(wire.encode(end))
    del known["is_throttled"]
    read = msgspec.convert(known, AttemptEnded)

    assert (read.how, read.retry_at) == (Ended.HANDED_BACK, 9.0)
    assert Ledger(ended=((1, read),)).used == 0


def test_a_dead_letter_of_a_crash_names_the_crashes_and_the_last_failure() -> None:
    failure = spent_attempts(recorded([End.FAILED, End.CRASHED]), 2)

    assert failure is not None
    assert failure.message == "its peer crashed or stalled in 1 of 2 attempts; the last failure before: failure 1"


def test_a_dead_letter_of_failures_repeats_the_last_one() -> None:
    failure = spent_attempts(recorded([End.FAILED, End.HANDED_BACK, End.FAILED]), 2)

    assert failure == Failure(kind=FailureKind.EXHAUSTED, message="failure 3", error="LookupError", attempts=2)


@given(st.integers(1, 10_000))
def test_the_usual_wait_is_bounded_whatever_the_attempt(failed: int) -> None:
    assert 0.5 <= wait_s(DEFAULT_WAIT, failed) <= 60.5


@given(st.integers(1, 6))
def test_waits_are_tenacitys_counted_from_the_first_failure(failed: int) -> None:
    assert wait_s(wait_fixed(3), failed) == 3.0
    assert wait_s(wait_exponential(multiplier=0.5), failed) == 0.5 * 2 ** (failed - 1)


@given(st.floats(), st.integers(1, 10))
def test_whatever_a_strategy_says_the_wait_is_a_time_of_at_most_thirty_days(said: float, failed: int) -> None:
    class Says(wait_base):
        def __call__(self, retry_state: RetryCallState) -> float:
            return said

    assert 0 <= wait_s(Says(), failed) <= WAIT_S_MAX


times = st.integers(0, 10**6).map(float)


def failed_at(at: float, pause_s: float) -> AttemptEnded:
    return AttemptEnded(how=Ended.FAILED, peer="p", at=at, retry_at=at + pause_s)


@given(times, st.integers(0, 100), times, times)
def test_no_clock_makes_a_retry_wait_longer_than_its_pause(
    written_at: float, pause_s: int, stored_at: float, now: float
) -> None:
    ledger = Ledger(ended=((1, in_server_time(failed_at(written_at, pause_s), stored_at)),))

    assert ledger.due_in_s(now) <= pause_s


@given(times, st.integers(0, 100), times, st.integers(0, 1_000))
def test_where_the_clock_here_is_right_one_that_was_ahead_puts_nothing_off(
    stored_at: float, pause_s: int, ahead_s: float, since_s: int
) -> None:
    end = in_server_time(failed_at(stored_at + ahead_s, pause_s), stored_at)

    assert Ledger(ended=((1, end),)).due_in_s(stored_at + since_s) == pause_s - since_s


@given(times, st.integers(0, 100), st.integers(0, 100))
def test_an_end_that_was_stored_after_it_was_written_stays_as_it_was(at: float, pause_s: int, later_s: int) -> None:
    end = failed_at(at, pause_s)

    assert in_server_time(end, at + later_s) == end


def test_without_a_pause_on_record_it_is_due() -> None:
    assert Ledger().due_in_s(5.0) == 0
