"""What an attempt came to, as values. `settle` tells the stream about each."""

from dataclasses import dataclass
from enum import StrEnum

from contracts.outcome import Failure, Outcome
from mesh.bus.records import Stored
from mesh.workflow.parking import Wait


class Reason(StrEnum):
    """Why a delivery is handed back; a label of a metric, so a closed set."""

    DRAINING = "draining"
    NEWER_FORMAT = "newer format"
    MALFORMED = "malformed record"
    BUS_AWAY = "bus away"
    REFUSED = "refused"
    OVERLOADED = "overloaded"
    BREAKER = "breaker open"
    PROBE_FAILED = "probe failed"
    OVERTAKEN = "overtaken by another run"
    RUNNING = "running"
    NOT_DUE = "its retry is not due"
    NO_PARK = "woken without a park"
    BEGUN = "another peer began the same attempt"


@dataclass(frozen=True, slots=True)
class Answer:
    """The task is over: commit the outcome, relay it, ack."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Answered:
    """A result record stands already: relay it again, whoever wrote it, and ack."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed and another may be made: record it, and hand the task back for a while.

    One that was throttled does not count, and is not in the peer's retry budget.
    """

    failure: Failure
    after_s: float
    is_throttled: bool = False


@dataclass(frozen=True, slots=True)
class HandBack:
    """Not an attempt: another peer may have it. On record, it does not look like a crash later."""

    reason: Reason
    delay_s: float = 0.0
    is_recorded: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """The task waits for long: leave it to the stream until one of its waits is over."""

    waits: tuple[Wait, ...]


@dataclass(frozen=True, slots=True)
class Parked:
    """The task is parked until its turn comes, and was looked at since: ack."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """The task is parked already, and this is the message it had before: have it woken, and ack."""


Verdict = Answer | Answered | Retry | HandBack | Park | Parked | Superseded
