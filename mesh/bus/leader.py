"""What stands, as a stream's leader has it, and hearing that another node leads.

A direct get is answered by any replica, and one that lags says "not there" of what was written before. Where that
answer decides something, the leader is asked with a write that cannot pass: its refusal names what it has. A server
that led once, stood still for longer than an election, and answers in the moment in which it goes on, may still be
behind; results and steps are written once even then.
"""

import asyncio

from contracts import headers as names
from contracts.subjects import Identity
from mesh.bus.connection import Bus
from mesh.bus.records import RETRY_S, Stored, read, read_past
from mesh.errors import BusUnavailable, PublishUnconfirmed, SequenceConflict

_NEVER = str(2**62)
READ_WITHIN_S = 5.0


async def standing(bus: Bus, task: Identity, subject: str) -> int:
    """The sequence of a task's record, 0 for none, as the stream's leader has it. Repeated until it answers."""
    # Asked on the wake's subject, the one of another capability's that every peer may write to.
    question = {names.EXPECTED_SUBJECT_SEQUENCE: _NEVER, names.EXPECTED_SUBJECT: subject}
    while True:
        try:
            await bus.store(bus.subjects.wake(task), b"", question)
        except SequenceConflict as refusal:
            return refusal.sequence
        except (BusUnavailable, PublishUnconfirmed):
            await bus.until_connected()
            await asyncio.sleep(RETRY_S)


async def read_at_leader(bus: Bus, task: Identity, subject: str) -> Stored | None:
    """A task's record, or None if the stream's leader has none. Repeated until it answers."""
    found = await read(bus, subject)
    while found is None and (sequence := await standing(bus, task, subject)):
        found = await read_past(bus, (subject,), sequence, within_s=READ_WITHIN_S)
    return found


def consumer_elections(stream: str) -> str:
    """The subject on which the server tells, once, that a consumer of a stream has a new leader."""
    return f"$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{stream}.*"


def stream_elections(stream: str) -> str:
    """The subject on which the server tells, once, that a stream has a new leader."""
    return f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}"
