"""What a waiting task records: its steps, signals and last words, and what a person is asked and says."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from contracts.objects import Kept
from contracts.outcome import Failure, Outcome, Spent
from contracts.task import Confidence, UnixSeconds
from contracts.wire import Record


class Step(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recorded step: what it returned, or why it failed for good."""

    value: Annotated[msgspec.Raw | msgspec.UnsetType, Meta(description="What it returned.")] = msgspec.UNSET
    value_at: Annotated[Kept | None, Meta(description="Where that is, if it is too large to stand here.")] = None
    failure: Annotated[Failure | None, Meta(description="Why it failed for good.")] = None
    digest: Annotated[str, Meta(description="Digest of its arguments; empty where there were none.")] = ""
    spent: Annotated[Spent | None, Meta(description="What it used up.")] = None
    peer: Annotated[str, Meta(description="Id of the peer that recorded it.")] = ""
    attempt: Annotated[int, Meta(description="Number of the attempt that recorded it.")] = 1
    at: Annotated[UnixSeconds, Meta(description="When it was recorded.")] = 0.0
    run_s: Annotated[float, Meta(description="How long it took.")] = 0.0


class Signal(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An outside event that a task waits for, or the end of its patience. The first one recorded counts."""

    value: Annotated[msgspec.Raw, Meta(description="What was signalled.")] = msgspec.field(
        default_factory=lambda: msgspec.Raw(b"null")
    )
    by: Annotated[str, Meta(description="Who signalled it.")] = ""
    at: Annotated[UnixSeconds, Meta(description="When.")] = 0.0
    is_late: Annotated[bool, Meta(description="Nobody did in time: the wait is over.")] = False
    nonce: Annotated[str, Meta(description="Tells one sender's repetition from another sender.")] = ""
    traceparent: Annotated[str, Meta(description="W3C Trace Context of who signalled it, if that was traced.")] = ""


class HandoffTo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To whom a task is handed."""

    capability: Annotated[str, Meta(description="What is asked for instead.")]
    payload: Annotated[msgspec.Raw, Meta(description="What it is asked with.")]
    payload_at: Annotated[Kept | None, Meta(description="Where that is, if it is too large to stand here.")] = None
    carry: Annotated[Any, Meta(description="What goes along.")] = None
    reason: Annotated[str, Meta(description="Why.")] = ""
    confidence: Annotated[Confidence | None, Meta(description="How sure the one that hands it over is.")] = None


class Closing(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A handler's last word where it is not yet the task's outcome.

    Once it is on record the handler is not run again, but to undo what it did.
    """

    outcome: Annotated[Outcome, Meta(description="What the handler came to.")]
    to: Annotated[HandoffTo | None, Meta(description="Who decides instead.")] = None
    is_rung: Annotated[bool, Meta(description="It is the next rung of the capability's ladder.")] = False


class AtDeadline(StrEnum):
    """What becomes of a proposal that nobody answered in time."""

    REJECT = "reject"
    APPROVE = "approve"
    FAIL = "fail"


class Proposal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person is asked: the payload of the capability `human`."""

    proposal: Annotated[Any, Meta(description="What is proposed; null where the person is to find the value.")] = None
    reason: Annotated[str, Meta(description="Why a person is asked.")] = ""
    confidence: Annotated[Confidence | None, Meta(description="How sure the one that proposes it is.")] = None
    asked_by: Annotated[str, Meta(description="The task that asks, as `capability/id`.")] = ""
    subject: Annotated[Any, Meta(description="What it is about: the payload of the task that asks.")] = None
    within_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds until it is decided without a person.")
    ] = None
    at_deadline: Annotated[AtDeadline, Meta(description="What happens then.")] = AtDeadline.REJECT
    who: Annotated[tuple[str, ...], Meta(description="Who may answer; empty for anybody.")] = ()


class Verdict(StrEnum):
    """What a person, or the clock, said to a proposal."""

    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A person's answer: the value of the signal `answer` of a `human` task, and that task's value."""

    verdict: Annotated[Verdict, Meta(description="Approved as proposed, edited, or rejected.")]
    value: Annotated[Any, Meta(description="The value to go on with.")] = None
    by: Annotated[str, Meta(description="Who answered; empty where the deadline did.")] = ""
    note: Annotated[str, Meta(description="What they say to it.")] = ""
    at: Annotated[UnixSeconds, Meta(description="When.")] = 0.0


class Claim(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a verifier is asked: whether a value answers a payload."""

    capability: Annotated[str, Meta(description="What was asked for.")]
    payload: Annotated[Any, Meta(description="What it was asked with.")]
    value: Annotated[Any, Meta(description="The answer in question.")]
    confidence: Annotated[Confidence | None, Meta(description="How sure the one that answers is.")] = None
    reason: Annotated[str, Meta(description="Why, in its words.")] = ""


class Check(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A verifier's vote."""

    agrees: Annotated[bool, Meta(description="Whether the value stands.")]
    reason: Annotated[str, Meta(description="Why.")] = ""


class Recurring(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A recurring task: the body of a cron message, and of each tick of it."""

    capability: Annotated[str, Meta(description="What is asked for at each tick.")]
    payload: Annotated[Any, Meta(description="What it is asked with.")] = None
    schedule: Annotated[str, Meta(description="When: six cron fields, `@every 10m`, `@daily` and the like.")] = ""
    time_zone: Annotated[str, Meta(description="IANA name; empty for UTC.")] = ""
    by: Annotated[str, Meta(description="Who set it.")] = ""
    at: Annotated[UnixSeconds, Meta(description="When it was set.")] = 0.0
