"""How many retries a peer makes: a share of its first attempts, and a few each second.

When something that all tasks need is down, every task fails and is tried again, and the retries are more than what
the dependency saw while it was well. So retries are a share of the traffic. Rules:

- A first attempt lets `share` of a retry be made, and each second `floor_per_s` more. What is not used within
  `WINDOW_S` is lost.
- A retry that finds none left is not dropped: it waits for its turn, behind those that wait already. Its turn is when
  as much will have come in, if the traffic goes on as in the last `WINDOW_S`. So delayed retries are spread, and come
  about as fast as the traffic allows.
- What was borrowed is owed until its turns have passed, no longer.
- The capability's own wait begins when the turn has come.
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

WINDOW_S: Final = 10.0
FLOOR_PER_S: Final = 5.0
_BUCKET_S: Final = 1.0


@dataclass(slots=True)
class RetryBudget:
    """The budget of one peer. Times are of one monotonic clock, in seconds, and never go back."""

    share: float
    floor_per_s: float = FLOOR_PER_S
    _firsts: deque[list[float]] = field(default_factory=deque)
    """First attempts of each second that had some, the oldest first: the second's start, and how many."""
    _count: float = 0
    _balance: float = float("inf")
    """Retries that may be made now; below 0, how many are made in advance."""
    _reckoned_at: float = 0.0
    _turns: list[float] = field(default_factory=list)
    """When those that wait have their turn, as a heap."""

    def attempted(self, now: float) -> None:
        """Take note of a first attempt."""
        if self._firsts and now - self._firsts[-1][0] < _BUCKET_S:
            self._firsts[-1][1] += 1
        else:
            self._expire(now)
            self._firsts.append([now, 1])
        self._count += 1
        self._balance += self.share

    def rate_per_s(self, now: float) -> float:
        """How many retries a second the traffic of the last seconds allows."""
        self._expire(now)
        return self.floor_per_s + self.share * self._count / WINDOW_S

    def take(self, now: float) -> float:
        """Take a retry out; how long it has to wait for its turn, in seconds."""
        rate_per_s = self.rate_per_s(now)
        self._reckon(now, rate_per_s)
        delay_s = max(0.0, (1 - self._balance) / rate_per_s)
        self._balance -= 1
        if delay_s > 0:
            heappush(self._turns, now + delay_s)
        return delay_s

    def _reckon(self, now: float, rate_per_s: float) -> None:
        come_in = self.floor_per_s * (now - self._reckoned_at)
        self._reckoned_at = now
        self._balance = min(self._balance + come_in, rate_per_s * WINDOW_S)
        while self._turns and self._turns[0] <= now:
            heappop(self._turns)
        self._balance = max(self._balance, -float(len(self._turns)))

    def _expire(self, now: float) -> None:
        while self._firsts and now - self._firsts[0][0] >= WINDOW_S:
            self._count -= self._firsts.popleft()[1]
