"""What happened in the life of a peer or a task, for whoever watches, now or later.

Events are kept in a stream of their own, for a while. What a task came to, and what was decided on the way, stands in
its result record: an event of it may be missing, but for decisions (`mesh.runtime.events`).
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from contracts.decision import Decision
from contracts.outcome import Spent
from contracts.task import Confidence
from contracts.wire import Record

CLIENT: Final = "(client)"
"""Stands for the capability of who asked, where that was no task."""


class EventKind(StrEnum):
    """The kinds that this version publishes. A reader may meet others."""

    JOINED = "joined"
    DRAINING = "draining"
    LEFT = "left"
    RETRIED = "retried"
    TAKEN_OVER = "taken-over"
    HANDED_BACK = "handed-back"
    HANDED_OFF = "handed-off"
    ESCALATED = "escalated"
    PARKED = "parked"
    WOKEN = "woken"
    DECIDED = "decided"
    ENDED = "ended"
    DEAD_LETTERED = "dead-lettered"
    CANCELLED = "cancelled"
    REVIVED = "revived"
    BREAKER_OPENED = "breaker-opened"
    BREAKER_CLOSED = "breaker-closed"


ROUTINE: Final = frozenset({EventKind.ENDED, EventKind.PARKED, EventKind.WOKEN})
"""What happens to tasks when nothing is the matter."""


class Event(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One lifecycle event. Its kind, status and failure are plain text: a newer peer may say what this one cannot."""

    kind: Annotated[str, Meta(description="What happened, as `ended`.")]
    at: Annotated[float, Meta(description="Unix time at the peer that says it.")]
    peer: Annotated[str, Meta(description="Id of the peer that says it.")]
    capability: Annotated[str, Meta(description="The task's capability; empty for a peer's own event.")] = ""
    id: Annotated[str, Meta(description="The task's id; empty for a peer's own event.")] = ""
    detail: Annotated[str, Meta(description="More, for people.")] = ""

    status: Annotated[str, Meta(description="Of a task that ended: how.")] = ""
    failure: Annotated[str, Meta(description="Of a task that failed: the kind of its failure.")] = ""
    queue_s: Annotated[float, Meta(description="Of a task that ended: from stored to started.")] = 0.0
    run_s: Annotated[float, Meta(description="Of a task that ended: from started to the handler's end.")] = 0.0
    attempt: Annotated[int, Meta(description="Number of the attempt that it was, from 1.")] = 0
    agent: Annotated[str, Meta(description="Name of the agent that answered.")] = ""
    version: Annotated[str, Meta(description="Its version.")] = ""
    owner: Annotated[str, Meta(description="Who owns the agent.")] = ""
    caller: Annotated[str, Meta(description="Capability of the task that asked, `(client)` where none did.")] = ""
    confidence: Annotated[Confidence | None, Meta(description="How sure the answer is.")] = None
    spent: Annotated[Spent | None, Meta(description="What the task used up.")] = None
    decision: Annotated[Decision | None, Meta(description="Of a decision: what was chosen, and why.")] = None
