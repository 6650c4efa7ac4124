"""What a task came to, as a value or as the exception that says why there is none."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from contracts.outcome import Outcome, Status
from contracts.subjects import Identity
from contracts.wire import ContentType
from mesh.errors import MeshError, TaskCancelled, TaskExpired, TaskFailed, TaskUnfinished
from mesh.payload import Shape

O = TypeVar("O")  # noqa: E741  # output


@dataclass(frozen=True, slots=True)
class Mapped(Generic[O]):
    """One item of a `map`: its position, and its value or what went wrong with it."""

    index: int
    task: Identity | None
    value: O | None = None
    error: MeshError | None = None

    @property
    def is_done(self) -> bool:
        return self.error is None

    def unwrap(self) -> O:
        """The value.

        Raises:
            MeshError: what went wrong instead.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None is a value where O allows it


def value_of(task: Identity, outcome: Outcome, as_type: ContentType, returns: Shape[O]) -> O:
    """The value of an outcome.

    Raises:
        TaskFailed, TaskCancelled, TaskExpired: it has none.
        ContractError: it is of another type.
    """
    if outcome.status is Status.DONE:
        return returns.decode(b"null" if outcome.value is msgspec.UNSET else bytes(outcome.value), as_type)
    raise unfinished(task, outcome)


def unfinished(task: Identity, outcome: Outcome) -> TaskUnfinished:
    """The exception for an outcome without a value."""
    failure = outcome.failure
    if outcome.status is Status.CANCELLED:
        return TaskCancelled(f"{task} was cancelled", outcome)
    if outcome.status is Status.EXPIRED:
        last = f"; its last attempt failed: {failure.message}" if failure is not None else ""
        return TaskExpired(f"{task} passed its deadline{last}", outcome)
    assert failure is not None, "a failed outcome says why"
    return TaskFailed(f"{task} failed ({failure.kind}): {failure.message}", outcome, failure)
