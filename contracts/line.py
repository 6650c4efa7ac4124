"""What is on record about a line: tasks that share an order key and run one at a time, in order."""

from typing import Annotated

from msgspec import Meta

from contracts.wire import Record


class LineMark(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How far a line has come. Both numbers only grow."""

    used: Annotated[int, Meta(ge=0, description="Every position up to this one was given to a task.")] = 0
    over: Annotated[int, Meta(ge=0, description="Every task up to this position is over.")] = 0


class LinePlace(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where in a line the task of an idempotency key stands, or is about to be put."""

    position: Annotated[int, Meta(ge=1, description="Its position.")]
