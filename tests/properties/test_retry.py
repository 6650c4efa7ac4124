"""What counts against a task's attempts, and how long the next one waits."""

from dataclasses import replace
from enum import Enum, auto
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from tenacity.wait import wait_exponential, wait_fixed

from contracts.outcome import AttemptEnded, Ended, Failure, FailureKind
from mesh.resilience.retry import DEFAULT_WAIT, Ledger, in_server_time, spent_attempts, wait_s


class End(Enum):
    """How one attempt of a history ended."""

    FAILED = auto()
    HANDED_BACK = auto()
    CRASHED = auto()


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
                retry_at=number + 0.5 if end is End.FAILED else None,
                failure=Failure(kind=FailureKind.TRANSIENT, message=f"failure {number}", error="LookupError")
                if end is End.FAILED
                else None,
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
    assert ledger.used == len(history) - history.count(End.HANDED_BACK)


@given(histories, limits, st.data())
def test_a_clean_hand_back_anywhere_changes_no_decision(history: list[End], attempts: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(history)))
    longer = [*history[:place], End.HANDED_BACK, *history[place:]]

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
    failed = [number for number, end in enumerate(history, 1) if end is End.FAILED]

    assert (ledger.last_failure.message if ledger.last_failure else None) == (
        f"failure {failed[-1]}" if failed else None
    )
    assert ledger.retry_at == (failed[-1] + 0.5 if failed else 0.0)


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
