"""When a client stops submitting, so that a full stream refuses new tasks before it refuses commits.

JetStream has one limit for the whole stream. A submission and a commit look alike to it, so the client keeps
a reserve: past a share of the limit it submits nothing. The stream's state is asked for rarely; in between,
the sequences of our own publish acknowledgements bound how many messages can have been added since.
"""

import math
from dataclasses import dataclass

REFRESH_S = 2.0
REFRESH_WHEN_FULL_S = 0.1
OVERLOAD_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Fill:
    """The stream's state when it was last asked for. Limits below 1 mean none."""

    messages: int
    bytes: int
    last_sequence: int
    messages_max: int
    bytes_max: int
    asked_at: float

    @property
    def share(self) -> float:
        """How full the stream was, 0 to 1."""
        by_messages = self.messages / self.messages_max if self.messages_max > 0 else 0.0
        by_bytes = self.bytes / self.bytes_max if self.bytes_max > 0 else 0.0
        return max(by_messages, by_bytes)

    def full_from(self, full_at: float) -> float:
        """The first stream sequence at which the stream may be `full_at` full, if nothing were taken out meanwhile."""
        room = math.inf
        if self.messages_max > 0:
            room = full_at * self.messages_max - self.messages
        if self.bytes_max > 0 and self.messages:
            mean_bytes = self.bytes / self.messages
            room = min(room, (full_at * self.bytes_max - self.bytes) / mean_bytes)
        return self.last_sequence + room


@dataclass(frozen=True, slots=True)
class Credit:
    """Permission to submit, until a sequence or a time is reached: then the stream is asked again."""

    fill: Fill
    below_sequence: float
    until: float

    @classmethod
    def after(cls, fill: Fill, *, full_at: float) -> "Credit":
        below = fill.full_from(full_at)
        # At the limit the stream is asked again soon, but not by every submission.
        is_full = fill.last_sequence >= below
        return cls(fill, below, fill.asked_at + (REFRESH_WHEN_FULL_S if is_full else REFRESH_S))

    @property
    def is_full(self) -> bool:
        return self.fill.last_sequence >= self.below_sequence

    def is_used_up(self, *, sequence: int, now: float) -> bool:
        """Whether to ask again before the next submission."""
        return now >= self.until or (sequence >= self.below_sequence and not self.is_full)
