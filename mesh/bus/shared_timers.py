"""The one stream of timers that all capabilities shared in older versions, and moving what it holds.

Its subjects are now those of a stream for each capability, and JetStream lets no two streams have one subject. So it
gives its subjects up first, keeping its messages; what it holds is copied once the new streams are there; and it is
deleted last. A run that ends midway is taken up by the next one, and each copy is made once.

A timer may fire in both: a wake too many says nothing. Peers of the older version miss their stream from then on; what
they hold is handed on when they are stopped.
"""

import logging
from contextlib import suppress
from typing import Final

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.subjects import TIMEKEEPER
from contracts.workflow import Recurring
from mesh.bus import topology
from mesh.bus.connection import Bus, Headers
from mesh.bus.records import LAST, Stored, read_range
from mesh.bus.replies import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, ApiError
from mesh.bus.timers import submit_tick
from mesh.bus.topology import Spec
from mesh.errors import BusUnavailable, SequenceConflict, SetupError

log = logging.getLogger("mesh.bus")

MEANS: Final = (
    "each capability has a stream of its own for timers now. Stop the peers of the older version first, they do not go"
    " on after it; those of this version wait for it"
)
_KEPT: Final = (names.SCHEDULE, names.SCHEDULE_TARGET, names.SCHEDULE_TIME_ZONE, names.TTL)


async def found(bus: Bus) -> Spec | None:
    """The shared stream, or None where there is none."""
    name = bus.subjects.shared_timer_stream
    spec = Spec("stream", name, name, {})
    return None if await topology.inspect(bus, spec) is None else spec


async def give_up_subjects(bus: Bus, shared: Spec) -> None:
    """Let other streams have the subjects of the shared one, which keeps what it holds. Safe to repeat.

    Raises:
        SetupError: the server refuses it.
    """
    account = await topology.inspect(bus, shared)
    # Not below the prefix: nobody writes there.
    subjects = [f"{shared.name}.moved"]
    if account is None or account["config"]["subjects"] == subjects:
        return
    try:
        await bus.api(f"CONSUMER.DELETE.{shared.name}.{TIMEKEEPER}")
    except ApiError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
    try:
        await bus.api(f"STREAM.UPDATE.{shared.name}", {**account["config"], "subjects": subjects})
    except ApiError as error:
        raise SetupError(f"{shared} does not give up its subjects: {error}") from error


async def move(bus: Bus, shared: Spec) -> int:
    """Copy what the shared stream holds to the streams of each capability, then delete it. Safe to repeat.

    How many messages it held. A schedule that cannot be read is dropped, as it is when it fires.

    Raises:
        SetupError, TopologyDrift: a stream that is needed cannot be made, or is not as it must be.
        PublishRejected: a copy is refused.
        BusUnavailable, PublishUnconfirmed: no answer, or not all could be read; repeat it.
    """
    account = await topology.inspect(bus, shared)
    if account is None:
        return 0
    count, made = 0, set[str]()
    last = int(account["state"]["last_seq"])
    # The second time for what fired meanwhile: the schedule it came from may have fired before its copy was set.
    for first, until in ((1, last), (last + 1, LAST)):
        async for stored in read_range(bus, shared.name, ">", first=first, last=until):
            try:
                await _copy(bus, stored, made)
            except ContractError as error:
                log.error("%s cannot be read, it is dropped: %s", stored.subject, error)
            count += 1
    left = await topology.inspect(bus, shared)
    # Any replica may have answered, and one that lags has less than there is.
    if left is not None and count < int(left["state"]["messages"]):
        raise BusUnavailable(f"of {left['state']['messages']:,} messages of {shared} only {count:,} could be read")
    try:
        await bus.api(f"STREAM.DELETE.{shared.name}")
    except ApiError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
    return count


async def _copy(bus: Bus, stored: Stored, made: set[str]) -> None:
    subjects = bus.subjects
    headers: Headers = {name: stored.headers[name] for name in _KEPT if name in stored.headers}
    word = stored.subject.removeprefix(f"{subjects.prefix}.").partition(".")[0]
    subject, capability = stored.subject, ""
    if word in ("cron", "tick"):
        recurring, name = wire.decode(Recurring, stored.data), stored.subject.rpartition(".")[2]
        capability = recurring.capability
        if word == "tick":
            # Its time is part of the task's id.
            await submit_tick(bus, name, recurring, stored.stored_at)
            return
        subject = subjects.cron(capability, name)
        headers[names.SCHEDULE_TARGET] = subjects.tick(capability, name)
    else:
        capability = subjects.capability_of(stored.subject)
    if capability not in made:
        await topology.ensure(bus, (topology.timers(bus.settings, capability),))
        made.add(capability)
    # An earlier run copied it, or a peer set it since.
    with suppress(SequenceConflict):
        await bus.store(subject, stored.data, {**headers, names.EXPECTED_SUBJECT_SEQUENCE: "0"})
