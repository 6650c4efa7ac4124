"""A task's envelope: what travels with a payload. Absent fields cost no bytes."""

from typing import Annotated

from msgspec import Meta, Struct

from contracts.wire import Record

UnixSeconds = Annotated[float, Meta(description="Seconds since 1970-01-01 UTC.")]
Confidence = Annotated[float, Meta(ge=0, le=1, description="How sure the one who says it is, 0 to 1.")]


class Sender(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked."""

    agent: str = ""
    role: str = ""
    version: str = ""
    peer: str = ""


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task and everything below it may use up."""

    usd: float | None = None
    tokens: int | None = None
    hops: int | None = None


class Task(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The envelope of a task, in the `Mesh-Task` header; the message's body is the payload alone.

    Its capability and id are in the subject. A message without the header is a task with every default.
    """

    digest: Annotated[str, Meta(description="SHA-256 of the payload's bytes, hex, first 32 digits.")] = ""
    deadline: Annotated[UnixSeconds | None, Meta(description="Past it the task is answered `expired`, not run.")] = None
    sender: Sender | None = None
    lineage: Annotated[
        tuple[str, ...], Meta(description="Capabilities of the task's ancestors, root first; `-` is a client session.")
    ] = ()
    conversation: Annotated[str, Meta(description="Groups tasks that belong to one exchange.")] = ""
    budget: Budget | None = None
    confidence: Confidence | None = None
    reason: Annotated[str, Meta(description="Why the sender asks.")] = ""
    redrive_of: Annotated[str, Meta(description="Id of the dead letter that this task tries again.")] = ""
