"""When a failed attempt is tried again. Waits are tenacity's strategies; the decision is a pure function."""

from dataclasses import dataclass

import msgspec
from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential, wait_random

from contracts.outcome import AttemptEnded, Ended, Failure, FailureKind

DEFAULT_WAIT: wait_base = wait_exponential(multiplier=0.5, max=60.0) + wait_random(0.0, 0.5)


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
    def last_failure(self) -> Failure | None:
        failures = [end.failure for _, end in sorted(self.ended, key=lambda item: item[0]) if end.failure is not None]
        return failures[-1] if failures else None

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


def wait_s(wait: wait_base, failed_attempts: int) -> float:
    """Seconds until the next attempt, after `failed_attempts` failures (1 or more)."""
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = failed_attempts
    return float(wait(state))


_RETRYING = Retrying()
