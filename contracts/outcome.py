"""What a task came to: its result record, and the failures it can name."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

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


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failure as data."""

    kind: FailureKind
    message: str
    error: Annotated[str, Meta(description="The exception's class.")] = ""
    path: Annotated[str, Meta(description="The field at fault, as `$.file.lines`.")] = ""
    attempts: Annotated[int, Meta(ge=0, description="Attempts that failed or crashed, this one included.")] = 0


class DecidedBy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who produced the value, exactly enough to notice that something changed."""

    agent: str = ""
    version: str = ""
    model: str = ""
    model_digest: str = ""
    prompt_digest: str = ""


class Spent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the task used up, as its handler reported it."""

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            usd=self.usd + other.usd,
        )


class Send(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that an outcome sends on: stored with the outcome, published by the relay."""

    capability: str
    id: str
    payload: msgspec.Raw
    task: Task
    traceparent: str = ""


class Outcome(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The result record of a task. It is written once; it carries everything the task sends next."""

    status: Status
    value: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description="What the handler returned, when `done`.")] = (
        msgspec.UNSET
    )
    failure: Failure | None = None
    sends: tuple[Send, ...] = ()
    decided_by: DecidedBy | None = None
    confidence: Confidence | None = None
    reason: str = ""
    spent: Spent | None = None
    digest: Annotated[str, Meta(description="The payload's digest, to recognise a repeated submission.")] = ""
    peer: Annotated[str, Meta(description="Id of the peer that wrote the record.")] = ""
    attempt: int = 1
    parts: Annotated[int, Meta(description="How many parts this attempt streamed.")] = 0
    queue_s: Annotated[float, Meta(description="From stored to started.")] = 0.0
    run_s: Annotated[float, Meta(description="From started to the handler's end.")] = 0.0


class Ended(StrEnum):
    """How an attempt ended without an outcome."""

    FAILED = "failed"
    HANDED_BACK = "handed-back"


class AttemptBegan(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recorded start of an attempt. Without a matching end or result it counts as a crash."""

    peer: str
    at: float


class AttemptEnded(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recorded end of an attempt that left the task to be delivered again."""

    how: Ended
    peer: str
    at: float
    retry_at: Annotated[float | None, Meta(description="Unix time before which it is not tried again.")] = None
    failure: Failure | None = None
