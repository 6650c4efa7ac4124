"""The server's time as a peer may know it, without a look at any wall clock of its own.

What a server stored, it stored before it was heard of. So each timestamp heard is a lower bound of the server's time
then, and the peer's monotonic clock carries it on. The best of all samples stands: it lags by one way from the server.
Limits are kept whatever the lag is; a lag only means that a bucket looks a little emptier than it is.

A timestamp of what the peer itself wrote is an upper bound, too, for the time at which it was sent. Where that is
below what was believed, the server's clock was set back, or another server leads now: then it is believed anew.
"""

from dataclasses import dataclass
from typing import Final

DRIFT: Final = 2e-4
"""How much faster than the server's the monotonic clock may run."""
SLACK_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class ServerTime:
    """The server's clock stood at least at `told` when the monotonic clock stood at `heard_at`."""

    told: float = 0.0
    heard_at: float = 0.0

    @property
    def is_known(self) -> bool:
        return self.told > 0

    def at(self, now: float) -> float:
        """The earliest that the server's clock can stand at, at a monotonic time; 0 while nothing is known."""
        return self.told + (now - self.heard_at) * (1 - DRIFT) if self.is_known else 0.0

    def heard(self, told: float, now: float) -> "ServerTime":
        """With a timestamp that was heard at the monotonic time `now`."""
        return ServerTime(told, now) if told > self.at(now) else self

    def wrote(self, told: float, sent_at: float, now: float) -> "ServerTime":
        """With the timestamp of what this peer itself sent at `sent_at`, heard of by now."""
        latest = told + SLACK_S + DRIFT * abs(now - self.heard_at)
        return ServerTime(told, now) if self.at(sent_at) > latest else self.heard(told, now)
