"""What all peers must know, and the questions they answer live."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from contracts.wire import Record


class Cancel(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Ends a task and everything below it: whoever touches it next answers `cancelled`."""

    at: Annotated[float, Meta(description="Unix time at which it was asked for.")]
    by: Annotated[str, Meta(description="Who asked for it.")] = ""
    reason: Annotated[str, Meta(description="Why.")] = ""


class Pause(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Peers stop taking work of a capability; what runs goes on, what comes waits in its queue."""

    at: Annotated[float, Meta(description="Unix time at which it was asked for.")]
    by: Annotated[str, Meta(description="Who asked for it.")] = ""
    reason: Annotated[str, Meta(description="Why.")] = ""


class BreakerChange(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The last change of a circuit breaker. Lengths count from when a peer hears of it: clocks differ."""

    state: Annotated[str, Meta(description="`closed`, `open`, or `half-open`: one peer may probe.")]
    at: Annotated[float, Meta(description="Unix time of the change.")]
    for_s: Annotated[float, Meta(ge=0, description="Until it may be probed; half open: until the lease ends.")] = 0.0
    by: Annotated[str, Meta(description="Id of the peer that decided it, or the name of who forced it.")] = ""
    reason: Annotated[str, Meta(description="Why.")] = ""


class WhoRuns(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Asked of all peers of a capability; only one that is running the task answers.

    An empty id asks for everything that runs.
    """

    id: Annotated[str, Meta(description="The task's id.")] = ""


class Running(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task in flight on a peer."""

    capability: Annotated[str, Meta(description="What was asked for.")]
    id: Annotated[str, Meta(description="The task's id.")]
    since: Annotated[float, Meta(description="Unix time at which the handler was started.")]
    attempt: Annotated[int, Meta(description="Number of the attempt, from 1.")] = 1
    parts: Annotated[int, Meta(description="Parts it has streamed so far.")] = 0
    is_waiting: Annotated[bool, Meta(description="It waits in memory and holds no slot.")] = False


class Runs(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `WhoRuns`."""

    peer: Annotated[str, Meta(description="Id of the peer that answers.")]
    running: Annotated[tuple[Running, ...], Meta(description="What runs there.")] = ()


class PartsWanted(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Asks whoever runs a task for parts that were missed, from `first` up to but without `end`."""

    id: Annotated[str, Meta(description="The task's id.")]
    attempt: Annotated[int, Meta(description="The attempt that streamed them.")]
    first: Annotated[int, Meta(description="Sequence of the first part wanted, from 0.")]
    end: Annotated[int, Meta(description="Sequence after the last part wanted.")]


class PartsKept(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The wanted parts that are still kept: sequence and value, in order."""

    parts: Annotated[tuple[tuple[int, Any], ...], Meta(description="Sequence and value of each.")] = ()
