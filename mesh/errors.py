"""Everything Starling raises.

    MeshError
    ├ ContractError             bytes, a name or a value break the contract   → dead letter, never again
    ├ SetupError                agents or settings that cannot work           → mend and start again
    │ └ TopologyMissing         a stream or consumer that an operator has to make
    ├ BusError
    │ ├ BusUnavailable          did not happen                                → retry
    │ ├ PublishRejected         refused, nothing was stored                   → caller decides
    │ │ ├ PermissionDenied      this user may not publish there
    │ │ ├ SequenceConflict      the subject, or what its guard covers, is taken
    │ │ ├ StreamFull            a limit of the stream is reached
    │ │ ├ Overloaded            too full for new tasks; `retry_after_s`
    │ │ └ IdempotencyConflict   the key stands for another payload
    │ ├ PublishUnconfirmed      may have happened                             → repeat it as it is
    │ ├ ObjectGone              a large payload or value is not kept any more
    │ └ TopologyDrift           a stream or consumer is not as this version needs it
    ├ TaskError                 what handlers raise
    │ ├ Transient(after_s)      tried again, up to the capability's attempts
    │ │ └ Throttled(after_s)    not now: tried again when the callee says, not counted as an attempt
    │ └ Permanent               failure result and dead letter
    │   ├ NonDeterminism        a replay asks something else under a name
    │   ├ DuplicateStep         a name is used twice in one run
    │   ├ HandoffLoop           agents hand a task in a circle, or too far
    │   ├ Rejected              a person, or the deadline of one, said no
    │   └ NobodyAnswered        a signal did not come in time; a DeadlineExceeded, too
    ├ TaskUnfinished            what a task came to, raised where its result is asked for
    │ ├ TaskFailed              `.failure` says why
    │ ├ TaskCancelled
    │ └ TaskExpired
    ├ SignalRefused             a signal that changes nothing: another came first, or nobody waits for it
    ├ BreakerOpen               what is to be called is known to fail; `retry_after_s`
    └ DeadlineExceeded          the wait ended first; the task goes on

What was sent over a network happened, did not happen, or may have happened; only what did not happen may be
retried freely.
"""

from contracts.errors import ContractError, MeshError
from contracts.outcome import Failure, Outcome

__all__ = [
    "BreakerOpen",
    "BusError",
    "BusUnavailable",
    "ContractError",
    "DeadlineExceeded",
    "DuplicateStep",
    "HandoffLoop",
    "IdempotencyConflict",
    "MeshError",
    "NobodyAnswered",
    "NonDeterminism",
    "ObjectGone",
    "Overloaded",
    "Permanent",
    "PermissionDenied",
    "PublishRejected",
    "PublishUnconfirmed",
    "Rejected",
    "SequenceConflict",
    "SetupError",
    "SignalRefused",
    "StreamFull",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskUnfinished",
    "Throttled",
    "TopologyDrift",
    "TopologyMissing",
    "Transient",
]


class SetupError(MeshError):
    """The declaration of an agent, or a setting, cannot work; the message says how to mend it."""


class TopologyMissing(SetupError):
    """A stream or consumer is missing, and only an operator can make it: `mesh topology apply`."""


class BusError(MeshError):
    """Something between this process and the stream."""


class BusUnavailable(BusError):
    """It did not happen: no server or no stream answered for it."""


class PublishRejected(BusError):
    """The server refused it; nothing was stored. `code` is JetStream's `err_code`, 0 for our own refusals."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class PermissionDenied(PublishRejected):
    """The server does not let this user publish there, or subscribe; `mesh auth show` tells who may what."""


class SequenceConflict(PublishRejected):
    """A guarded publish met a message that is already there; `sequence` is its stream sequence, if told."""

    def __init__(self, message: str, *, code: int = 0, sequence: int = 0) -> None:
        super().__init__(message, code=code)
        self.sequence = sequence


class StreamFull(PublishRejected):
    """The stream is at its limit of messages or bytes."""


class Overloaded(PublishRejected):
    """The mesh takes no new tasks now; nothing was stored."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IdempotencyConflict(PublishRejected):
    """The key was already used for the same capability with another payload."""


class PublishUnconfirmed(BusError):
    """No answer came: it may be stored. Repeating it as it is stores it once."""


class ObjectGone(BusError):
    """A payload or value that was kept beside its record is not there any more, or is damaged: asking again is vain."""


class TopologyDrift(BusError):
    """A stream or consumer on the server differs from what this version needs."""


class TaskError(MeshError):
    """What a handler raises to say how its failure is to be taken."""


class Transient(TaskError):
    """The attempt failed, another may succeed. Tried again after `after_s` seconds, or by the capability's waits."""

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Throttled(Transient):
    """Somebody who was called said: not now, come back in `after_s` seconds. Without them the mesh's waits are used.

    The task is tried again then. It costs no attempt, but a task waits so for no longer than its capability's
    `throttled_for_s` in all.
    """


class Permanent(TaskError):
    """No attempt will succeed: the task is answered with this failure, and kept as a dead letter."""


class NonDeterminism(Permanent):
    """A replay asks something else under a name than is on record; the message says what, then and now."""


class DuplicateStep(Permanent):
    """A step's or child's name is used twice in one run."""


class HandoffLoop(Permanent):
    """Agents hand a task to each other in a circle, or over too many hops."""


class Rejected(Permanent):
    """A proposal was not approved."""


class SignalRefused(MeshError):
    """A signal changed nothing: another came first, the task is over, or there is no such task."""


class TaskUnfinished(MeshError):
    """The task ended without a value. `outcome` is its result record."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


class TaskFailed(TaskUnfinished):
    """The task failed for good; `failure` says why."""

    def __init__(self, message: str, outcome: Outcome, failure: Failure) -> None:
        super().__init__(message, outcome)
        self.failure = failure


class TaskCancelled(TaskUnfinished):
    """The task was cancelled before it had a value."""


class TaskExpired(TaskUnfinished):
    """The task's deadline passed before it had a value."""


class BreakerOpen(MeshError):
    """No call was made: the breaker named `breaker` is open for `retry_after_s` more seconds at least.

    A handler that lets it through hands its task back, which counts as no attempt.
    """

    def __init__(self, message: str, *, breaker: str = "", retry_after_s: float) -> None:
        super().__init__(message)
        self.breaker = breaker
        self.retry_after_s = retry_after_s


class DeadlineExceeded(MeshError, TimeoutError):
    """The wait took as long as it was allowed; the task itself goes on."""


class NobodyAnswered(Permanent, DeadlineExceeded):
    """A signal that a task waited for did not come in time. That is on record: no attempt will see it come."""
