"""A task's envelope: what travels with a payload. Absent fields cost no bytes."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from contracts.subjects import SESSION
from contracts.wire import Record

UnixSeconds = Annotated[float, Meta(description="Seconds since 1970-01-01 UTC.")]
Confidence = Annotated[float, Meta(ge=0, le=1, description="How sure the one who says it is, 0 to 1.")]


PriorityName = Literal["urgent", "normal", "bulk"]


class Priority(StrEnum):
    """Which queue a task waits in."""

    URGENT = "urgent"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def lane(self) -> str:
        """The lane of the subject; the default queue has none."""
        return "" if self is Priority.NORMAL else self.value


class Sender(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked."""

    agent: Annotated[str, Meta(description="Name of the asking agent or client.")] = ""
    role: Annotated[str, Meta(description="Its role.")] = ""
    version: Annotated[str, Meta(description="Its version.")] = ""
    peer: Annotated[str, Meta(description="Id of its peer, where a peer asked.")] = ""


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task and everything below it may use up."""

    usd: Annotated[float | None, Meta(description="US dollars; null for no limit.")] = None
    tokens: Annotated[int | None, Meta(description="Tokens of models; null for no limit.")] = None
    hops: Annotated[int | None, Meta(description="Levels of children; null for no limit.")] = None


class Order(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a task stands in a line of tasks that run one at a time, in the order of their submission."""

    key: Annotated[str, Meta(description="The order key: which line.")]
    position: Annotated[int, Meta(ge=1, description="Its position in the line, from 1.")]
    submitted_as: Annotated[
        str, Meta(description="Tells its submission from others: its idempotency key, or a name of the submitter's.")
    ] = ""


class Task(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The envelope of a task, in the `Mesh-Task` header; the message's body is the payload alone.

    Its capability and id are in the subject. A message without the header is a task with every default.
    """

    digest: Annotated[str, Meta(description="SHA-256 of the payload's bytes, hex, first 32 digits.")] = ""
    priority: Annotated[Priority, Meta(description="Urgent before normal before bulk; children have it, too.")] = (
        Priority.NORMAL
    )
    deadline: Annotated[UnixSeconds | None, Meta(description="Past it the task is answered `expired`, not run.")] = None
    sender: Annotated[Sender | None, Meta(description="Who asked.")] = None
    lineage: Annotated[
        tuple[str, ...], Meta(description="Capabilities of the task's ancestors, root first; `-` is a client session.")
    ] = ()
    conversation: Annotated[str, Meta(description="Groups tasks that belong to one exchange.")] = ""
    budget: Annotated[Budget | None, Meta(description="What it may use up.")] = None
    confidence: Annotated[Confidence | None, Meta(description="How sure the sender is of what it asks.")] = None
    reason: Annotated[str, Meta(description="Why the sender asks.")] = ""
    redrive_of: Annotated[str, Meta(description="Id of the dead letter that this task tries again.")] = ""
    is_awaited: Annotated[bool, Meta(description="Its parent waits for it, and is woken when it is done.")] = False
    keep_until: Annotated[
        UnixSeconds | None, Meta(description="Until when the records of its workflow are kept; set by the root.")
    ] = None
    carry: Annotated[Any, Meta(description="What a handoff hands along beside the payload.")] = None
    handed: Annotated[
        tuple[str, ...],
        Meta(description="Handoffs that led here, each `<capability>/<payload digest>`, in order."),
    ] = ()
    order: Annotated[Order | None, Meta(description="Where it stands in a line, if in any.")] = None

    @property
    def caller(self) -> str:
        """The capability of the task that asked for this one; empty where a client, or nobody known, did."""
        asked = self.lineage[-1] if self.lineage else SESSION
        return "" if asked == SESSION else asked
