"""Header names: ours, the W3C's, and the few of NATS JetStream that Starling reads or writes."""

from typing import Final

# Ours. A task needs none of them: a bare JSON body on a task subject is a whole submission.
OURS: Final = "Mesh-"
"""What the names of all of them begin with, those of newer versions too."""
TASK: Final = "Mesh-Task"
"""The task's envelope, a `contracts.task.Task` as compact JSON."""
PART: Final = "Mesh-Part"
"""`<attempt>.<sequence>` of a streamed part."""
DEAD: Final = "Mesh-Dead"
"""Why a dead letter is dead, a `contracts.outcome.Failure` as compact JSON."""
PARKED: Final = "Mesh-Parked"
"""When the task of a park record was stored at first, as Unix seconds."""
OBJECT: Final = "Mesh-Object"
"""`1` where the body is no payload but a `contracts.objects.KeptPayload`: the payload is kept as an object."""
CONTENT_TYPE: Final = "Content-Type"
"""`application/json` when absent."""

# W3C Trace Context, https://www.w3.org/TR/trace-context/, and Baggage, https://www.w3.org/TR/baggage/
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
TRACE: Final = (TRACEPARENT, TRACESTATE, BAGGAGE)
"""What travels with a task from message to message, so that all that is done for it is one trace."""

# NATS JetStream (ADR-8, ADR-31, ADR-43).
EXPECTED_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
TTL: Final = "Nats-TTL"
STATUS: Final = "Status"
DESCRIPTION: Final = "Description"
STREAM: Final = "Nats-Stream"
SEQUENCE: Final = "Nats-Sequence"
STORED_AT: Final = "Nats-Time-Stamp"
SUBJECT: Final = "Nats-Subject"
PENDING_MESSAGES: Final = "Nats-Pending-Messages"
NUM_PENDING: Final = "Nats-Num-Pending"
# Scheduled messages (ADR-51).
SCHEDULE: Final = "Nats-Schedule"
SCHEDULE_TARGET: Final = "Nats-Schedule-Target"
SCHEDULE_TIME_ZONE: Final = "Nats-Schedule-Time-Zone"
SCHEDULER: Final = "Nats-Scheduler"
