"""When a client stops submitting, so that a full stream refuses new tasks before it refuses commits.

JetStream has one limit for the whole stream. A submission and a commit look alike to it, so the client keeps
a reserve: past a share of the limit it submits nothing. The stream's state is asked for rarely; in between,
the sequences of our own publish acknowledgements, and our submissions under way, bound how many messages can
have been added since. What other clients have under way is not known: the reserve must hold that.
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

    def has_room(self, size: int, *, full_at: float) -> bool:
        """Whether so many bytes more leave the stream's reserve untouched."""
        return self.bytes_max <= 0 or self.bytes + size <= full_at * self.bytes_max

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
    """What the last look at the stream permits.

    `sequence` is the last one known to be stored, `under_way` counts submissions that are not answered yet.
    """

    fill: Fill
    below_sequence: float

    @classmethod
    def after(cls, fill: Fill, *, full_at: float) -> "Credit":
        return cls(fill, fill.full_from(full_at))

    def admits(self, sequence: int, under_way: int = 0) -> bool:
        """Whether one more task may be submitted."""
        return sequence + under_way < self.below_sequence

    def is_stale(self, sequence: int, under_way: int = 0, *, now: float) -> bool:
        """Whether to look again first. Where a look has told that it is full, soon; not for every submission."""
        age_s = now - self.fill.asked_at
        if self.admits(sequence, under_way):
            return age_s >= REFRESH_S
        has_filled_since = self.fill.last_sequence < self.below_sequence <= sequence
        return has_filled_since or age_s >= REFRESH_WHEN_FULL_S
