"""What happened in the life of a peer or a task, for whoever watches. Published, not stored."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from contracts.wire import Record


class EventKind(StrEnum):
    JOINED = "joined"
    DRAINING = "draining"
    LEFT = "left"
    RETRIED = "retried"
    TAKEN_OVER = "taken-over"
    HANDED_BACK = "handed-back"
    DEAD_LETTERED = "dead-lettered"
    CANCELLED = "cancelled"
    REVIVED = "revived"
    BREAKER_OPENED = "breaker-opened"
    BREAKER_CLOSED = "breaker-closed"


class Event(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One lifecycle event. Routine starts and ends are not events: the result record tells them."""

    kind: Annotated[EventKind, Meta(description="What happened.")]
    at: Annotated[float, Meta(description="Unix time at the peer that says it.")]
    peer: Annotated[str, Meta(description="Id of the peer that says it.")]
    capability: Annotated[str, Meta(description="The task's capability; empty for a peer's own event.")] = ""
    id: Annotated[str, Meta(description="The task's id; empty for a peer's own event.")] = ""
    detail: Annotated[str, Meta(description="More, for people.")] = ""
