"""What a task came to: its result record, and the failures it can name."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from contracts.decision import Decision
from contracts.headers import TRACE
from contracts.objects import Kept
from contracts.task import Confidence, Task
from contracts.wire import Record


class Status(StrEnum):
    """How a task ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class FailureKind(StrEnum):
    """Why a task failed. Every kind but `transient` becomes a failure result and a dead letter."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    CONTRACT = "contract"
    EXHAUSTED = "exhausted"
    CRASHED = "crashed"
    TOO_LARGE = "too-large"
    TOO_OLD = "too-old"
    NON_DETERMINISM = "non-determinism"
    LOOP = "loop"
    REJECTED = "rejected"


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failure as data."""

    kind: Annotated[FailureKind, Meta(description="Why it failed.")]
    message: Annotated[str, Meta(description="The same for people.")]
    error: Annotated[str, Meta(description="The exception's class.")] = ""
    path: Annotated[str, Meta(description="The field at fault, as `$.file.lines`.")] = ""
    attempts: Annotated[int, Meta(ge=0, description="Attempts that failed or crashed, this one included.")] = 0


class DecidedBy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who produced the value, exactly enough to notice that something changed."""

    agent: Annotated[str, Meta(description="Name of the agent.")] = ""
    version: Annotated[str, Meta(description="Version of the agent.")] = ""
    model: Annotated[str, Meta(description="The model it used.")] = ""
    model_digest: Annotated[str, Meta(description="Digest of the model's weights or configuration.")] = ""
    prompt_digest: Annotated[str, Meta(description="Digest of the prompt.")] = ""


class Spent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the task used up, as its handler reported it."""

    tokens_in: Annotated[int, Meta(description="Tokens read by models.")] = 0
    tokens_out: Annotated[int, Meta(description="Tokens written by models.")] = 0
    usd: Annotated[float, Meta(description="Cost in US dollars.")] = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            usd=self.usd + other.usd,
        )


class Send(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that an outcome sends on: stored with the outcome, published by the relay."""

    capability: Annotated[str, Meta(description="What the task asks for.")]
    id: Annotated[str, Meta(description="Its id, below its parent's.")]
    payload: Annotated[msgspec.Raw, Meta(description="What it asks with.")]
    task: Annotated[Task, Meta(description="Its envelope.")]
    traceparent: Annotated[str, Meta(description="W3C Trace Context.")] = ""
    tracestate: Annotated[str, Meta(description="W3C Trace Context, what vendors add to it.")] = ""
    baggage: Annotated[str, Meta(description="W3C Baggage.")] = ""
    payload_at: Annotated[Kept | None, Meta(description="Where the payload is, if it is too large to stand here.")] = (
        None
    )

    @property
    def trace(self) -> dict[str, str]:
        """The headers that carry its trace on; those that say something."""
        told = zip(TRACE, (self.traceparent, self.tracestate, self.baggage), strict=True)
        return {name: value for name, value in told if value}


class Outcome(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The result record of a task. It is written once; it carries everything the task sends next."""

    status: Annotated[Status, Meta(description="How the task ended.")]
    value: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description="What the handler returned, when `done`.")] = (
        msgspec.UNSET
    )
    value_at: Annotated[Kept | None, Meta(description="Where the value is, if it is too large to stand here.")] = None
    failure: Annotated[Failure | None, Meta(description="Why there is no value.")] = None
    sends: Annotated[tuple[Send, ...], Meta(description="Tasks that this outcome sends on.")] = ()
    decided_by: Annotated[DecidedBy | None, Meta(description="Who produced the value.")] = None
    confidence: Annotated[Confidence | None, Meta(description="How sure the handler is.")] = None
    reason: Annotated[str, Meta(description="Why, in the handler's words.")] = ""
    spent: Annotated[Spent | None, Meta(description="What it used up.")] = None
    decisions: Annotated[tuple[Decision, ...], Meta(description="What was decided on the way, by whoever ran it.")] = ()
    digest: Annotated[str, Meta(description="The payload's digest, to recognise a repeated submission.")] = ""
    peer: Annotated[str, Meta(description="Id of the peer that wrote the record.")] = ""
    attempt: Annotated[int, Meta(description="Number of the attempt that came to it, from 1.")] = 1
    parts: Annotated[int, Meta(description="How many parts this attempt streamed.")] = 0
    queue_s: Annotated[float, Meta(description="From stored to started.")] = 0.0
    run_s: Annotated[float, Meta(description="From started to the handler's end.")] = 0.0
    submitted_as: Annotated[str, Meta(description="Of a task in a line: what told its submission from others.")] = ""
    is_early: Annotated[
        bool, Meta(description="Of a task in a line: it ended before its turn; those before it may not be over.")
    ] = False


class Ended(StrEnum):
    """How an attempt ended without an outcome."""

    # An older reader refuses a record with a value that it does not know: what one more value would say stands in a
    # field of `AttemptEnded` instead.

    FAILED = "failed"
    HANDED_BACK = "handed-back"
    PARKED = "parked"


class AttemptBegan(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recorded start of an attempt. Without a matching end or result it counts as a crash."""

    peer: Annotated[str, Meta(description="Id of the peer that began it.")]
    at: Annotated[float, Meta(description="Unix time of its start.")]
    traceparent: Annotated[str, Meta(description="W3C Trace Context of its run, if that was traced.")] = ""


class AttemptEnded(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recorded end of an attempt that left the task to be delivered again."""

    how: Annotated[Ended, Meta(description="Whether it counts.")]
    peer: Annotated[str, Meta(description="Id of the peer that ended it.")]
    at: Annotated[float, Meta(description="Unix time of its end.")]
    retry_at: Annotated[float | None, Meta(description="Unix time before which it is not tried again.")] = None
    failure: Annotated[Failure | None, Meta(description="What went wrong, if it failed.")] = None
    is_throttled: Annotated[
        bool, Meta(description="Of one that was handed back: a callee said when to come again.")
    ] = False
    decisions: Annotated[tuple[Decision, ...], Meta(description="What the attempt decided until then.")] = ()
    traceparent: Annotated[str, Meta(description="W3C Trace Context of its run, if that was traced.")] = ""
