"""What all peers must know, and the questions they answer live."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from contracts.wire import Record


class Cancel(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Ends a task and everything below it: whoever touches it next answers `cancelled`."""

    at: float
    by: str = ""
    reason: str = ""


class Pause(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Peers stop taking work of a capability; what runs goes on, what comes waits in its queue."""

    at: float
    by: str = ""
    reason: str = ""


class WhoRuns(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Asked of all peers of a capability; only one that is running the task answers.

    An empty id asks for everything that runs.
    """

    id: str = ""


class Running(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task in flight on a peer."""

    capability: str
    id: str
    since: Annotated[float, Meta(description="Unix time at which the handler was started.")]
    attempt: int = 1
    parts: int = 0


class Runs(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `WhoRuns`."""

    peer: str
    running: tuple[Running, ...] = ()


class PartsWanted(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Asks whoever runs a task for parts that were missed, from `first` up to but without `end`."""

    id: str
    attempt: int
    first: int
    end: int


class PartsKept(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The wanted parts that are still kept: sequence and value, in order."""

    parts: tuple[tuple[int, Any], ...] = ()
