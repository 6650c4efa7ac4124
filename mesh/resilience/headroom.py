"""When a client stops submitting, so that a full stream refuses new tasks before it refuses commits.

JetStream has one limit for the whole stream. A submission and a commit look alike to it, so the client keeps
a reserve: past a share of the limit it submits nothing. The stream's state is asked for rarely; in between,
the sequences of our own publish acknowledgements bound how many messages can have been added since.
"""

from dataclasses import dataclass

REFRESH_S = 2.0
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

    def share(self, sequence: int) -> float:
        """How full the stream can be at most, if everything stored up to `sequence` is still there, 0 to 1 or more."""
        added = max(0, sequence - self.last_sequence)
        mean_bytes = self.bytes / self.messages if self.messages else 0.0
        by_messages = (self.messages + added) / self.messages_max if self.messages_max > 0 else 0.0
        by_bytes = (self.bytes + added * mean_bytes) / self.bytes_max if self.bytes_max > 0 else 0.0
        return max(by_messages, by_bytes)


def is_stale(fill: Fill | None, *, sequence: int, now: float, full_at: float) -> bool:
    """Whether the state must be asked for again before the next submission is let through."""
    if fill is None or now - fill.asked_at > REFRESH_S:
        return True
    # Close to the limit the estimate decides, so it is made sure of; but not by every submission.
    return fill.share(sequence) >= full_at and now - fill.asked_at > REFRESH_S / 20


def admits(fill: Fill, *, sequence: int, full_at: float) -> bool:
    """Whether a new task may be submitted."""
    return fill.share(sequence) < full_at
