"""When a failed attempt is tried again. Waits are tenacity's strategies; the decision is a pure function."""

import math
from dataclasses import dataclass
from typing import Final

import msgspec
from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential, wait_random

from contracts.decision import Decision
from contracts.outcome import AttemptEnded, Ended, Failure, FailureKind

DEFAULT_WAIT: wait_base = wait_exponential(multiplier=0.5, max=60.0) + wait_random(0.0, 0.5)
WAIT_S_MAX: Final = 30 * 86_400.0
EXACT_THROTTLES: Final = 8
"""How many times a callee that throttles a task is taken at its word; then the mesh waits longer and longer."""
THROTTLED_WAIT_S_MAX: Final = 60.0
JITTER_SHARE: Final = 0.1
JITTER_S_MIN, JITTER_S_MAX = 0.1, 30.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the records tell of a task's earlier attempts.

    `began` and `ended` are by attempt number. A start without an end is a crash, or a peer that stalled for
    so long that the task was taken from it. The first attempt of a capability with more than one is started
    without a record; delivered again with no record of it, it counts as one crash.
    """

    began: frozenset[int] = frozenset()
    ended: tuple[tuple[int, AttemptEnded], ...] = ()
    is_redelivered: bool = False
    traced: tuple[tuple[int, str], ...] = ()
    """The trace contexts of the attempts that told one, by number, ascending."""

    @property
    def last(self) -> int:
        """The highest attempt that is known to have begun."""
        return max((0, *self.began, *(number for number, _ in self.ended), 1 if self.is_redelivered else 0))

    @property
    def failures(self) -> int:
        return sum(end.how is Ended.FAILED for _, end in self.ended)

    @property
    def crashes(self) -> int:
        closed = {number for number, _ in self.ended}
        known = self.began | ({1} if self.is_redelivered else set())
        return len(known - closed)

    @property
    def is_last_open(self) -> bool:
        """Whether the last attempt may still run somewhere: nothing tells of its end."""
        return self.last not in {number for number, _ in self.ended}

    @property
    def used(self) -> int:
        """Attempts that count against the limit: failures and crashes, never clean hand-backs."""
        return self.failures + self.crashes

    @property
    def throttles(self) -> int:
        """Attempts that ended because a callee said: not now. They do not count against the limit."""
        return sum(end.is_throttled for _, end in self.ended)

    @property
    def throttled_s(self) -> float:
        """How long the task has waited for callees that throttled it, in all."""
        return sum(max(0.0, (end.retry_at or end.at) - end.at) for _, end in self.ended if end.is_throttled)

    @property
    def last_failure(self) -> Failure | None:
        failures = [end.failure for _, end in sorted(self.ended, key=lambda item: item[0]) if end.failure is not None]
        return failures[-1] if failures else None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the last attempt that decided anything had decided when it ended."""
        decided = [end.decisions for _, end in sorted(self.ended, key=lambda item: item[0]) if end.decisions]
        return decided[-1] if decided else ()

    @property
    def retry_at(self) -> float:
        return max((end.retry_at or 0.0 for _, end in self.ended), default=0.0)

    def due_in_s(self, now: float) -> float:
        """How long until it may be tried again, at the Unix time `now`; zero or less if it may.

        Never longer than the pause that was decided on: the clock that says `now` may be hours behind.
        """
        pauses = [(end.at, end.retry_at) for _, end in self.ended if end.retry_at is not None]
        return max((retry_at - max(now, at) for at, retry_at in pauses), default=0.0)


def in_server_time(end: AttemptEnded, stored_at: float) -> AttemptEnded:
    """The end of an attempt as the server dates it, where the peer that recorded it was ahead; its pause stays.

    By a clock that was hours ahead the next attempt would be hours away.
    """
    ahead_s = end.at - stored_at
    if ahead_s <= 0:
        return end
    retry_at = None if end.retry_at is None else end.retry_at - ahead_s
    return msgspec.structs.replace(end, at=stored_at, retry_at=retry_at)


def spent_attempts(ledger: Ledger, attempts: int) -> Failure | None:
    """The failure that ends a task whose earlier attempts used up its limit, before it is run again."""
    if ledger.used < attempts:
        return None
    if ledger.crashes:
        last = ledger.last_failure
        told = f"; the last failure before: {last.message}" if last else ""
        return Failure(
            kind=FailureKind.CRASHED,
            message=f"its peer crashed or stalled in {ledger.crashes} of {ledger.used} attempts{told}",
            attempts=ledger.used,
        )
    last = ledger.last_failure
    return Failure(
        kind=FailureKind.EXHAUSTED,
        message=last.message if last else "no attempt succeeded",
        error=last.error if last else "",
        attempts=ledger.used,
    )


def wait_s(wait: wait_base, failed_attempts: int, *, is_checked: bool = True) -> float:
    """Seconds until the next attempt, after `failed_attempts` failures (1 or more).

    From 0 to 30 days, whatever `wait` says; without `is_checked`, what it says.
    """
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = failed_attempts
    told_s = float(wait(state))
    if not is_checked:
        return told_s
    return WAIT_S_MAX if math.isnan(told_s) else min(max(0.0, told_s), WAIT_S_MAX)


def throttled_wait_s(told_s: float, throttles: int, *, dice: float) -> float:
    """Seconds until a throttled task is tried again, if it was throttled `throttles` times, this one included.

    As long as the callee told, and a little longer, by `dice` from 0 to 1, so that not all that it told at once come
    back at once. One who keeps telling short waits is asked less and less often, once a minute in the end: each
    attempt leaves a record.
    """
    over = max(0, throttles - EXACT_THROTTLES)
    least_s = min(2.0 ** min(over - 1, 10), THROTTLED_WAIT_S_MAX) if over else 0.0
    waits_s = max(told_s, least_s)
    return waits_s + dice * min(max(JITTER_SHARE * waits_s, JITTER_S_MIN), JITTER_S_MAX)


def spent_throttles(failure: Failure, ledger: Ledger, after_s: float, throttled_for_s: float) -> Failure | None:
    """The failure that ends a task which would wait longer for callees that throttle it than it may."""
    if ledger.throttled_s + after_s <= throttled_for_s:
        return None
    message = (
        f"{failure.message}; throttled {ledger.throttles + 1} times, it has waited {ledger.throttled_s:.1f} s and would"
        f" wait {after_s:.1f} s more, its limit is {throttled_for_s:g} s in all (throttled_for_s)"
    )
    return Failure(
        kind=FailureKind.EXHAUSTED, message=message, error=failure.error, path=failure.path, attempts=ledger.used + 1
    )


_RETRYING = Retrying()
